"""Training: from a config to finished runs, over one mesh, one loop and checkpoints."""

__all__: list[str] = []  # for the commands
