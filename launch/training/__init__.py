"""Training: from a config to finished runs, with one training loop, checkpoints, and data parallelism."""

__all__: list[str] = []  # for the commands
