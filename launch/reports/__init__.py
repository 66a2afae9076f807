"""Report pages and figures of finished runs."""

__all__: list[str] = []  # for the commands
