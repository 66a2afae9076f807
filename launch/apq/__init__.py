"""The steps of APQ, and what they share."""

__all__: list[str] = []  # for the command
