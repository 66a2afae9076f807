"""Experiments, one per file; `--config=NAME` and `launch.load_config` load them by name."""

__all__: list[str] = []
