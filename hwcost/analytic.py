"""Costs that follow from arithmetic alone."""

from aqt_like.formats import Format
from hwcost.cost_model import CostModel, per_format
from hwcost.workload import LayerSpec


def bit_operations(layer: LayerSpec, fmt: Format) -> float:
    """Bit operations of a layer whose weights and input are both in `fmt`: bits² · MACs (FLIQS, Eq. 1)."""
    return fmt.bits**2 * layer.macs


def weight_bytes(layer: LayerSpec, fmt: Format) -> float:
    """Bytes of a layer's weights, densely packed, without scales and biases."""
    return layer.weights * fmt.bits / 8


def activation_bytes(layer: LayerSpec, fmt: Format) -> float:
    """Bytes of a layer's input and output for one example, both in `fmt`: what has to be held while it runs."""
    return (layer.input_values + layer.output_values) * fmt.bits / 8


BIT_OPERATIONS = CostModel(per_format(bit_operations), "bit operations")
WEIGHT_BYTES = CostModel(per_format(weight_bytes), "bytes")
PEAK_ACTIVATION_BYTES = CostModel(per_format(activation_bytes), "bytes", total="peak")
