"""ONNX nodes for number formats: rounding to a format, and constants in the smallest type that holds them (needs onnx).

Codes of inputs of up to 8 bits are UINT8 between a QuantizeLinear and a DequantizeLinear of scale 1, which runtimes
with integer kernels look for; scales are multiplied elsewhere, as a frozen network does. Signed codes have the zero
point 128, since ONNX Runtime does not load all graphs with signed inputs.
"""

import math
from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx

from launch.runtimes.onnx_builder import ExportError, GraphBuilder, Operands, Tensor, Value, module_path

_SIGNIFICANT_BITS = 24  # of float32
_FLOAT = onnx.TensorProto.FLOAT
_UNIT = np.ones((), np.float32)


def rounded(graph: GraphBuilder, arguments: Sequence[Value], scope: str) -> Tensor:
    """What `numerics.round_to_grid` and `round_within_range` compute: saturation and rounding, ties to even.

    Args:
      graph: the graph.
      arguments: the float32 values, in units of the format, and the fields of its row (`FormatTable`).
      scope: the name stack of the call.

    Raises:
      ExportError: the format depends on the input of the graph.
    """
    x, *row = arguments
    if any(isinstance(field, Tensor) for field in row) or not isinstance(x, Tensor):
        raise ExportError(f"{scope}: a number format that depends on the input has no counterpart in ONNX here")
    _, smallest_exponent, mantissa_bits, largest, lowest, scaled, _ = (np.asarray(field).item() for field in row)
    step = 2.0 ** (smallest_exponent - mantissa_bits)
    path = module_path(scope)
    if not scaled:
        bits = mantissa_bits + 1
        graph.containers[path].append("FLOAT" if bits == _SIGNIFICANT_BITS else f"FLOAT rounded to {bits} bits")
        return x if bits == _SIGNIFICANT_BITS else _to_significant_bits(graph, x, bits)
    if largest >= 2.0**smallest_exponent:  # A float format: an integer has no normal numbers.
        graph.containers[path].append("FLOAT, emulated")
        return _to_float_format(graph, x, smallest_exponent, mantissa_bits, largest, step)
    if step == 1 and largest <= 255 and lowest >= -128:
        graph.containers[path].append("UINT8")
        return _to_byte(graph, x, lowest, largest)
    graph.containers[path].append("FLOAT, whole numbers")
    return _apply(graph, "Round", _clipped(graph, x, lowest, largest))


def _apply(graph: GraphBuilder, kind: str, x: Tensor, *others: Tensor | float) -> Tensor:
    """A node of `x` and other values or float32 numbers."""
    values = [other if isinstance(other, Tensor) else np.asarray(other, np.float32) for other in others]
    return Tensor(graph.add(kind, [x, *values]), x.axes)


def _clipped(graph: GraphBuilder, x: Tensor, lowest: float, largest: float) -> Tensor:
    return _apply(graph, "Clip", x, lowest, largest)


def _to_byte(graph: GraphBuilder, x: Tensor, lowest: float, largest: float) -> Tensor:
    """Whole numbers of up to 8 bits, as UINT8 between two nodes."""
    if graph.origin(x) != "Mul":
        # A scale of 1 leaves no product before the codes, and ONNX Runtime would quantise the weights of the layer that
        # they come from. It leaves out a factor of 1, but not these two.
        x = _apply(graph, "Mul", _apply(graph, "Mul", x, 2.0), 0.5)
    zero = np.uint8(128 if lowest < 0 else 0)
    if (lowest, largest) != (0, 255):  # which saturate by themselves
        x = _clipped(graph, x, lowest, largest)
    if zero:
        # Rounded first: a runtime may add the zero point before it rounds, which takes the last bits away.
        x = _apply(graph, "Round", x)
    zero_point = graph.named(np.asarray(zero))
    codes = graph.add("QuantizeLinear", [x, _UNIT, zero_point])
    return Tensor(graph.add("DequantizeLinear", [codes, _UNIT, zero_point]), x.axes)


def _to_significant_bits(graph: GraphBuilder, x: Tensor, bits: int) -> Tensor:
    """Rounds to this many significant bits, ties to even, by Veltkamp's splitting: of normal numbers below 2^103.

    A cast to bfloat16 and back would do for 8 bits, but OpenVINO rounds it wrongly where the batch is of any size.
    """
    larger = _apply(graph, "Mul", x, 2 ** (_SIGNIFICANT_BITS - bits) + 1)
    return _apply(graph, "Sub", larger, _apply(graph, "Sub", larger, x))


def _to_float_format(
    graph: GraphBuilder, x: Tensor, smallest_exponent: int, mantissa_bits: int, largest: float, step: float
) -> Tensor:
    """Normal numbers have a fixed number of significant bits; smaller ones are whole multiples of a step."""
    x = _clipped(graph, x, -largest, largest)
    normal = _to_significant_bits(graph, x, mantissa_bits + 1)
    whole = _apply(graph, "Round", _apply(graph, "Mul", x, 1 / step))
    subnormal = _apply(graph, "Mul", whole, step)
    magnitude = _apply(graph, "Abs", x)
    is_normal = _apply(graph, "GreaterOrEqual", magnitude, 2.0**smallest_exponent)
    return Tensor(graph.add("Where", [is_normal, normal, subnormal]), x.axes)


def factors(graph: GraphBuilder, left: Value, right: Value, path: str) -> tuple[Value, Value]:
    """Both factors of a product; a constant, such as codes of weights, is in the smallest type that holds it exactly.

    One of INT8 is behind a DequantizeLinear where the other factor is one of codes, so that runtimes multiply integers.
    Elsewhere it is behind a Cast: for DequantizeLinear, both ONNX Runtime and OpenVINO would round the other factor.
    """
    of_codes = any(isinstance(each, Tensor) and graph.origin(each) == "DequantizeLinear" for each in (left, right))

    def stored(value: Value) -> Value:
        if isinstance(value, Tensor):
            return value
        kind, name = _stored(graph, value, of_codes)
        graph.containers[path].append(kind)
        return Tensor(name, tuple(range(value.ndim)))

    return stored(left), stored(right)


EXACT = Operands(rounded, factors)
"""The operands of a frozen network as they are."""


def _stored(graph: GraphBuilder, values: np.ndarray, of_codes: bool) -> tuple[str, str]:
    """The type of a constant and the name of its values in float32."""
    if values.dtype != np.float32:
        return values.dtype.name.upper(), graph.named(values)
    if np.isfinite(values).all() and np.array_equal(values, np.rint(values)):
        for kind in (ml_dtypes.int4, np.int8):
            limits = ml_dtypes.iinfo(kind)
            if limits.min <= values.min(initial=0) and values.max(initial=0) <= limits.max:
                stored = graph.named(values.astype(kind))
                if kind is np.int8 and of_codes:
                    return "INT8", graph.add("DequantizeLinear", [stored, _UNIT])
                return np.dtype(kind).name.upper(), graph.add("Cast", [stored], to=_FLOAT)
    table = np.unique(values)
    sizes: dict[Any, float] = {np.float32: 4 * values.size}
    if np.array_equal(values.astype(ml_dtypes.bfloat16).astype(np.float32), values):
        sizes[ml_dtypes.bfloat16] = 2 * values.size
    if np.array_equal(values, np.rint(values)) and np.abs(values).max() < 2**15:
        sizes[np.int16] = 2 * values.size
    if len(table) <= 256:
        index = ml_dtypes.uint4 if len(table) <= 16 else np.uint8
        sizes[index] = table.nbytes + math.ceil(values.size * (0.5 if len(table) <= 16 else 1))
    kind = min(sizes, key=sizes.__getitem__)
    name = np.dtype(kind).name.upper()
    if kind is np.float32:
        return "FLOAT", graph.named(values)
    if kind in (ml_dtypes.bfloat16, np.int16):
        return name, graph.add("Cast", [graph.named(values.astype(kind))], to=_FLOAT)
    codes = graph.named(np.searchsorted(table, values).astype(kind))
    positions = graph.add("Cast", [codes], to=onnx.TensorProto.INT32)
    return f"{name} and a table", graph.add("Gather", [table, positions], axis=0)
