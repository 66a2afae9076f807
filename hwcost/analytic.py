"""Analytic costs, computed from layer sizes and bits: bit operations, weight bytes and activation bytes."""

from aqt_like.formats import LayerFormat
from hwcost.cost_model import CostModel, per_format
from hwcost.workload import LayerSpec


def bit_operations(layer: LayerSpec, fmt: LayerFormat) -> float:
    """Bit operations of a layer: weight bits · input bits · MACs; b² · MAC if both have b bits (FLIQS, Eq. 1)."""
    return fmt.weights.bits * fmt.inputs.bits * layer.macs


def weight_bytes(layer: LayerSpec, fmt: LayerFormat) -> float:
    """Bytes of a layer's weights, densely packed, without scales and biases."""
    return layer.weights * fmt.weights.bits / 8


def activation_bytes(layer: LayerSpec, fmt: LayerFormat) -> float:
    """Bytes of a layer's input and output, both in `fmt`, in one run for one example: its activation memory."""
    return (layer.input_values + layer.output_values) * fmt.inputs.bits / 8


BIT_OPERATIONS = CostModel(per_format(bit_operations), "bit operations")
WEIGHT_BYTES = CostModel(per_format(weight_bytes), "bytes")
PEAK_ACTIVATION_BYTES = CostModel(per_format(activation_bytes), "bytes", total="peak")
