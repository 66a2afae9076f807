"""What networks are run with on this machine: ONNX Runtime, OpenVINO or JAX itself.

A runtime makes a program ready at some width of its formats, and running it is then a call without arguments. ONNX
Runtime and OpenVINO get the same graphs; 8 bits are unsigned activations, with zero point 0 where nothing is negative
and 128 or so elsewhere, and signed weights per channel, written as pairs of QuantizeLinear and DequantizeLinear (QDQ).
"""

import itertools
import logging
import os
import pathlib
import platform
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Program(NamedTuple):
    """Something to run: a layer, or a whole network.

    Attributes:
      function: `(weights, x) → y`.
      weights: a pytree of arrays.
      x: a typical input; what it holds decides the zero points.
    """

    function: Callable[[Any, jax.Array], jax.Array]
    weights: Any
    x: jax.Array


Run = Callable[[], object]
COPIES = 4


class Runtime(NamedTuple):
    """A way to run programs.

    Attributes:
      device: machine, threads, runtime and its version: what a measurement is a property of.
      widths: the bits that it computes with; the widest is float32.
      whole: `(network, width, float_layers=()) → Run`. At 8 bits, layers whose paths are in `float_layers` stay in
        float32.
      alone: `(layer, width) → Run`, as inside a network: at 8 bits it takes and gives integers, and copies with weights
        of their own run in turn, because one would find its weights in the nearest cache.
    """

    device: str
    widths: tuple[int, ...]
    whole: Callable[..., Run]
    alone: Callable[[Program, int], Run]


def _in_turn(runs: Sequence[Run]) -> Run:
    turn = itertools.cycle(runs)

    def run() -> object:
        return next(turn)()

    return run


class RuntimeMissingError(ValueError):
    """A runtime that is not installed; the message says what to install."""


def find(name: str, *, threads: int) -> Runtime:
    """The runtime of that name.

    Raises:
      ValueError: no such name, or one that is not installed.
    """
    if name not in RUNTIMES:
        raise ValueError(f"backend {name!r}: expected one of {', '.join(RUNTIMES)}")
    try:
        return RUNTIMES[name](threads)
    except ImportError as error:
        raise RuntimeMissingError(
            f"backend {name!r} needs {error.name}: pip install -r requirements-devices.txt"
        ) from error


def _machine(threads: int) -> str:
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {threads} threads"


def _jax(threads: int) -> Runtime:
    """Compiled by XLA for the default device, which uses as many threads as it likes."""
    device = jax.devices()[0]
    where = _machine(os.cpu_count() or threads) if device.platform == "cpu" else device.device_kind
    dtypes = {32: jnp.float32, 16: jnp.bfloat16}

    def start(program: Program, width: int, copies: int) -> Run:
        def cast(value: jax.Array) -> jax.Array:
            return value.astype(dtypes[width]) if jnp.issubdtype(value.dtype, jnp.floating) else value

        weights, x = jax.tree.map(cast, (program.weights, program.x))
        compiled = jax.jit(program.function).lower(weights, x).compile()

        def run(weights: Any) -> Run:
            return lambda: jax.block_until_ready(compiled(weights, x))

        return _in_turn([run(jax.tree.map(jnp.copy, weights)) for _ in range(copies)])

    def whole(program: Program, width: int, float_layers: Sequence[str] = ()) -> Run:
        if float_layers:
            raise ValueError("backend 'jax' runs all of a network in one format")
        return start(program, width, 1)

    return Runtime(
        f"{where}, jax {jax.__version__}", tuple(dtypes), whole, lambda layer, width: start(layer, width, COPIES)
    )


def _onnxruntime(threads: int) -> Runtime:
    import onnxruntime

    def start(graph: bytes, x: np.ndarray, copies: int) -> Run:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        # Threads that spin between two runs would make a layer alone look faster than inside a network.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        sessions = [
            onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"]) for _ in range(copies)
        ]
        output = sessions[0].get_outputs()[0]
        y = np.zeros(output.shape, np.uint8 if output.type == "tensor(uint8)" else np.float32)
        # Bound once, so that a run copies and allocates nothing: a small layer takes less time than that would.
        input_value, output_value = (onnxruntime.OrtValue.ortvalue_from_numpy(value) for value in (x, y))

        def run(session: Any) -> Run:
            binding = session.io_binding()
            binding.bind_ortvalue_input("input", input_value)
            binding.bind_ortvalue_output("output", output_value)
            return lambda: session.run_with_iobinding(binding)

        return _in_turn([run(session) for session in sessions])

    version = f"onnxruntime {onnxruntime.__version__}"
    return _through_onnx(f"{_machine(threads)}, {version}", start, channels_first=(32,))


def _openvino(threads: int) -> Runtime:
    # Its telemetry forks this process, which JAX's threads may not survive. Where it is missing, a stub stands in.
    nothing: Any = None
    sys.modules.setdefault("openvino_telemetry", nothing)
    import openvino

    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}

    def start(graph: bytes, x: np.ndarray, copies: int) -> Run:
        tensor = openvino.Tensor(x)

        def run() -> Run:
            request = core.compile_model(core.read_model(graph), "CPU", settings).create_infer_request()
            request.set_input_tensor(tensor)
            return request.infer

        return _in_turn([run() for _ in range(copies)])

    version = f"openvino {openvino.__version__.split('-')[0]}"
    return _through_onnx(f"{_machine(threads)}, {version}", start, channels_first=(8,))


RUNTIMES: dict[str, Callable[[int], Runtime]] = {
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
    "jax": _jax,
}


def _through_onnx(
    device: str, start: Callable[[bytes, np.ndarray, int], Run], *, channels_first: Sequence[int]
) -> Runtime:
    """A runtime that starts ONNX graphs.

    Args:
      device: as in `Runtime`.
      start: `(graph, x, copies) → Run`.
      channels_first: widths at which a layer alone gets and gives values with the channels first, and not last: which
        of the two costs less conversion. Inside a network a runtime keeps values as its convolutions like them.
    """
    from launch.runtimes import onnx_graphs

    def graph_of(program: Program) -> Any:
        return onnx_graphs.export(lambda x: program.function(program.weights, x), program.x)

    def whole(program: Program, width: int, float_layers: Sequence[str] = ()) -> Run:
        graph, x = graph_of(program), np.asarray(program.x)
        if width == 8:
            graph = _quantized(graph, x, float_layers)
        return start(graph.SerializeToString(), x, 1)

    def alone(program: Program, width: int) -> Run:
        if width in channels_first and program.x.ndim > 2:
            program = _channels_first(program)
        graph, x = graph_of(program), np.asarray(program.x)
        if width == 8:
            graph = _with_integer_ends(_quantized(graph, x))
            x = np.random.default_rng(0).integers(0, 256, x.shape, np.uint8)
        return start(graph.SerializeToString(), x, COPIES)

    return Runtime(device, (32, 8), whole, alone)


def _channels_first(program: Program) -> Program:
    def function(weights: Any, x: jax.Array) -> jax.Array:
        return jnp.moveaxis(program.function(weights, jnp.moveaxis(x, 1, -1)), -1, 1)

    return Program(function, program.weights, jnp.moveaxis(program.x, -1, 1))


def _quantized(graph: Any, x: np.ndarray, float_layers: Sequence[str] = ()) -> Any:
    """The graph with QDQ pairs but around `float_layers`, by ONNX Runtime's own tool.

    Raises:
      ValueError: there is no such layer.
    """
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization import shape_inference

    class OneExample(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self._left = [{"input": x}]

        def get_next(self) -> Mapping[str, np.ndarray] | None:
            return self._left.pop() if self._left else None

    with tempfile.TemporaryDirectory() as directory:
        given, folded, quantized = (f"{directory}/{name}.onnx" for name in ("given", "folded", "quantized"))
        onnx.save(graph, given)
        logging.disable(logging.WARNING)  # it advises what the next line does
        try:
            # Batch normalisation goes into the convolutions.
            shape_inference.quant_pre_process(given, folded, skip_symbolic_shape=True)
            names = {node.name.removesuffix("/MatMulAddFusion"): node.name for node in onnx.load(folded).graph.node}
            if unknown := [layer for layer in float_layers if layer not in names]:
                raise ValueError(f"no layer {', '.join(unknown)} to leave in float")
            quantization.quantize_static(
                folded,
                quantized,
                OneExample(),
                quant_format=quantization.QuantFormat.QDQ,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                per_channel=True,
                nodes_to_exclude=[names[layer] for layer in float_layers],
            )
        finally:
            logging.disable(logging.NOTSET)
        return onnx.load(quantized)


def _with_integer_ends(graph: Any) -> Any:
    """The graph without the pair's half that makes integers of its input, and the one that makes floats of its output.

    Inside a network, other layers do that.
    """
    from onnx import TensorProto

    body = graph.graph
    first = next(node for node in body.node if node.op_type == "QuantizeLinear")
    last = [node for node in body.node if node.op_type == "DequantizeLinear"][-1]
    kept = [node for node in body.node if node not in (first, last)]
    for node in kept:
        node.input[:] = [first.input[0] if name == first.output[0] else name for name in node.input]
        node.output[:] = [last.output[0] if name == last.input[0] else name for name in node.output]
    del body.node[:], body.value_info[:]
    body.node.extend(kept)
    for end in (body.input[0], body.output[0]):
        end.type.tensor_type.elem_type = TensorProto.UINT8
    return graph
