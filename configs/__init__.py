"""Experiments, one a file: `--config=NAME` finds them, and so does `launch.load_config`; none is imported from here."""

__all__: list[str] = []
