"""The steps of an APQ experiment (APQ, Algorithm 1), and what they share."""

__all__: list[str] = []  # for the command
