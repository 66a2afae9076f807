"""Fast graphs: another network than the one that was measured, for runtimes that compute in 8 bits (needs onnxruntime).

Layers have the weights that their codes stand for, and their inputs are clipped where the network clips them.
ONNX Runtime's static quantiser makes the rest: normalisation is folded into weights, these get 8 bits, biases 32, and
the values between layers 8 bits with ranges from examples.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from aqt_like.formats import parse_format
from aqt_like.frozen_network import FrozenNetwork, Kernel
from launch.runtimes import onnx_graphs, static_quantization
from launch.runtimes.onnx_builder import Arguments, ExportError, GraphBuilder, Operands, Tensor, Value


def _clipped(graph: GraphBuilder, arguments: Arguments, scope: str) -> Value:
    x, _, _, _, largest, lowest, scaled, _ = arguments
    del scope
    if not scaled:
        return x
    return Tensor(graph.add("Clip", [x, np.asarray(lowest, np.float32), np.asarray(largest, np.float32)]), x.axes)


def _as_they_are(graph: GraphBuilder, left: Value, right: Value, path: str) -> tuple[Value, Value]:
    del graph, path
    return left, right


CLIPPED = Operands(_clipped, _as_they_are)
"""Inputs of layers are clipped, and not rounded."""


def layers_in_float(network: FrozenNetwork) -> Sequence[str]:
    """The layers that have no integer format of at most 8 bits, and stay in float32.

    Raises:
      ExportError: these are all layers.
    """

    def is_small(name: str) -> bool:
        fmt = parse_format(name)
        return fmt.is_integer and fmt.bits <= 8

    kernels = {
        path: layer.weights.packed.format for path, layer in network.layers.items() if isinstance(layer.weights, Kernel)
    }
    small = [path for path, name in kernels.items() if is_small(name) and is_small(network.layers[path].input_format)]
    if not small:
        raise ExportError("--form=fast: no layer has an integer format of at most 8 bits: --form=exact exports it")
    return [path for path in kernels if path not in small]


def quantized(
    graph: onnx_graphs.Exported, network: FrozenNetwork, batches: Iterable[np.ndarray]
) -> onnx_graphs.Exported:
    """The graph with layers of integers in 8 bits.

    Args:
      graph: that of the network in real units, under `CLIPPED`.
      network: the network of the graph.
      batches: its inputs, which tell the ranges of values.
    """
    in_float = layers_in_float(network)
    containers = {path: ["FLOAT", "FLOAT"] if path in in_float else ["UINT8", "INT8"] for path in network.layers}
    return onnx_graphs.Exported(static_quantization.quantize(graph.model, batches, in_float), containers)
