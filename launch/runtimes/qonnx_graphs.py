"""QONNX graphs: float32 with nodes that tell the found formats and scales to compilers for FPGAs (needs onnx).

A Quant node quantises its input to integers and gives their values in float32, a FloatQuant node does so for floats:
FINN and hls4ml read them, and the package `qonnx` executes them.
"""

from typing import Any

import numpy as np

from aqt_like.formats import Format, parse_format
from aqt_like.frozen_network import FrozenNetwork, Kernel
from launch.runtimes.onnx_builder import Arguments, ExportError, GraphBuilder, Operands, Tensor, Value, module_path

DOMAIN = "qonnx.custom_op.general"


def operands(network: FrozenNetwork) -> Operands:
    """The operands of a network whose scales are 1 (`fast_graphs.in_real_units`), with its own scales."""

    def rounded(graph: GraphBuilder, arguments: Arguments, scope: str) -> Value:
        layer = network.layers[module_path(scope)]
        unit = np.float32(layer.input_scale * 2.0**layer.input_exponent)
        return _quantized(graph, arguments[0], parse_format(layer.input_format), unit, module_path(scope))

    def factors(graph: GraphBuilder, left: Value, right: Value, path: str) -> tuple[Value, Value]:
        return kernel(graph, left, path), kernel(graph, right, path)

    def kernel(graph: GraphBuilder, values: Value, path: str) -> Value:
        if isinstance(values, Tensor) or path not in network.layers:
            return values
        weights = network.layers[path].weights
        assert isinstance(weights, Kernel)
        fmt = parse_format(weights.packed.format)
        unit = np.float32(weights.packed.scale * 2.0**weights.packed.exponent).ravel()
        outputs = 0 if values.ndim > 2 else 1  # of a convolution and of a matrix
        shape = [1] * values.ndim
        if unit.size > 1:
            shape[outputs] = unit.size
        if unit.size not in (1, values.shape[outputs]) or not _are_of(values / unit.reshape(shape), fmt):
            raise ExportError(
                f"{path}: scales of weights, other than one for each output, have no counterpart in QONNX"
            )
        unit = unit.reshape(shape) if unit.size > 1 else unit.reshape(())
        return _quantized(graph, Tensor(graph.named(values), tuple(range(values.ndim))), fmt, unit, path)

    return Operands(rounded, factors)


def _are_of(units: np.ndarray, fmt: Format) -> bool:
    """Whether numbers, but for the last bits, are values of an integer format; of floats it is taken for granted."""
    return not fmt.is_integer or bool(np.abs(units - np.rint(units)).max(initial=0) < 1e-3)


def _quantized(graph: GraphBuilder, x: Tensor, fmt: Format, unit: Any, path: str) -> Tensor:
    """The values of `x` in a format whose unit has this value."""
    if fmt.name == "fp32":
        graph.containers[path].append("FLOAT")
        return x
    if fmt.is_integer:
        numbers = [np.asarray(value, np.float32) for value in (0, fmt.bits)]
        signed = int(fmt.lowest < 0)
        name = graph.add(
            "Quant", [x, unit, *numbers], domain=DOMAIN, signed=signed, narrow=signed, rounding_mode="ROUND"
        )
        graph.containers[path].append(f"Quant, {fmt.bits} bits")
        return Tensor(name, x.axes)
    # Exponents are stored from 0, for subnormal numbers, or 1 on.
    exponent_bits = fmt.bits - 1 - fmt.mantissa_bits
    bias = 1 - fmt.smallest_exponent
    numbers = [np.asarray(value, np.float32) for value in (exponent_bits, fmt.mantissa_bits, bias, fmt.largest)]
    flags = {"has_inf": 0, "has_nan": 0, "has_subnormal": 1, "saturation": 1}
    name = graph.add("FloatQuant", [x, unit, *numbers], domain=DOMAIN, rounding_mode="ROUND", **flags)
    graph.containers[path].append(f"FloatQuant, {exponent_bits} and {fmt.mantissa_bits} bits")
    return Tensor(name, x.axes)
