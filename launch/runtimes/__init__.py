"""Export of networks as ONNX graphs, and timing of networks and layers in deployment runtimes."""

__all__: list[str] = []  # for the commands
