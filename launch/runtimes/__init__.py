"""Running networks elsewhere than in JAX: as ONNX graphs, in the engines that people deploy to, and timed there."""

__all__: list[str] = []  # for the commands
