"""Static quantisation of ONNX graphs to 8 bits by ONNX Runtime's own tool (needs onnxruntime)."""

import logging
import tempfile
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx
from onnxruntime import quantization
from onnxruntime.quantization import shape_inference


class _Examples(quantization.CalibrationDataReader):
    """The batches whose smallest and largest values are the ranges of the graph's values."""

    def __init__(self, batches: Iterable[np.ndarray]) -> None:
        self._left = iter(batches)

    def get_next(self) -> Mapping[str, np.ndarray] | None:
        batch = next(self._left, None)
        return None if batch is None else {"input": batch}


def quantize(
    graph: onnx.ModelProto, batches: Iterable[np.ndarray], float_layers: Sequence[str] = ()
) -> onnx.ModelProto:
    """The graph with batch normalisation folded into weights, and QDQ pairs except around `float_layers`.

    Args:
      graph: a graph of float32.
      batches: its inputs, which tell the ranges of values.
      float_layers: paths of layers that stay in float32.

    Raises:
      ValueError: the graph has no such layer.
    """
    with tempfile.TemporaryDirectory() as directory:
        given, folded, quantized = (f"{directory}/{name}.onnx" for name in ("given", "folded", "quantized"))
        onnx.save(graph, given)
        logging.disable(logging.WARNING)  # it recommends the preprocessing that the next line does
        try:
            shape_inference.quant_pre_process(given, folded, skip_symbolic_shape=True)
            layers = {node.name: _layer(node.name) for node in onnx.load(folded).graph.node}
            if unknown := [layer for layer in float_layers if layer not in layers.values()]:
                raise ValueError(f"no layer {', '.join(unknown)} to leave in float")
            quantization.quantize_static(
                folded,
                quantized,
                _Examples(batches),
                quant_format=quantization.QuantFormat.QDQ,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                per_channel=True,
                nodes_to_exclude=[name for name, layer in layers.items() if layer in float_layers],
            )
        finally:
            logging.disable(logging.NOTSET)
        return onnx.load(quantized)


def _layer(name: str) -> str:
    """The layer of a node, which may be a later call of it, or fused with its bias."""
    return name.removesuffix("/MatMulAddFusion").partition(":")[0]
