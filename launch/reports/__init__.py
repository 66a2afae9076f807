"""Pages and pictures about finished runs."""

__all__: list[str] = []  # for the commands
