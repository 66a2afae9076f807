"""Runtimes that execute networks on this machine: ONNX Runtime, OpenVINO and JAX itself.

A runtime prepares a program at a bit width; the result is a function without arguments that runs it once. ONNX Runtime
and OpenVINO get the same graphs. At 8 bits, these have pairs of QuantizeLinear and DequantizeLinear (QDQ) nodes:
unsigned activations per tensor, with zero point 0 where nothing is negative and about 128 elsewhere, and signed weights
with per-channel scales.
"""

import itertools
import os
import pathlib
import platform
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Program(NamedTuple):
    """A layer or a whole network to run.

    Attributes:
      function: `(weights, x) → y`.
      weights: pytree of arrays.
      x: typical input, `[B, …]`; its values calibrate scales and zero points.
    """

    function: Callable[[Any, jax.Array], jax.Array]
    weights: Any
    x: jax.Array


Run = Callable[[], object]
COPIES = 4


class Runtime(NamedTuple):
    """A runtime with its device.

    Attributes:
      device: machine, number of threads, runtime and version, which together identify measurements.
      widths: supported bit widths; 32 is float32.
      prepare_network: `(network, width, float_layers=()) → Run`. At 8 bits, layers with paths in `float_layers` stay in
        float32.
      prepare_layer: `(layer, width) → Run`, under the conditions inside a network: at 8 bits, input and output are
        integers, and copies with separate weights run in turn, since a single one would keep its weights in the
        cache.
    """

    device: str
    widths: tuple[int, ...]
    prepare_network: Callable[..., Run]
    prepare_layer: Callable[[Program, int], Run]


def _in_turn(runs: Sequence[Run]) -> Run:
    turn = itertools.cycle(runs)

    def run() -> object:
        return next(turn)()

    return run


class RuntimeMissingError(ValueError):
    """A runtime is not installed; the message says what to install."""


def find(name: str, *, threads: int) -> Runtime:
    """Runtime of that name.

    Raises:
      ValueError: unknown name.
      RuntimeMissingError: the runtime is not installed.
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
    """JAX on its default device; on a CPU, XLA uses all threads, whatever `threads` says."""
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

    def prepare_network(program: Program, width: int, float_layers: Sequence[str] = ()) -> Run:
        if float_layers:
            raise ValueError("backend 'jax' runs all of a network in one format")
        return start(program, width, 1)

    return Runtime(
        f"{where}, jax {jax.__version__}",
        tuple(dtypes),
        prepare_network,
        lambda layer, width: start(layer, width, COPIES),
    )


def _onnxruntime(threads: int) -> Runtime:
    import onnxruntime

    def start(graph: bytes, x: np.ndarray, copies: int) -> Run:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        # Threads that spin between runs would make a single layer look faster than inside a network.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        sessions = [
            onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"]) for _ in range(copies)
        ]
        output = sessions[0].get_outputs()[0]
        y = np.zeros(output.shape, np.uint8 if output.type == "tensor(uint8)" else np.float32)
        # Bound once, so that a run neither copies nor allocates, which can take longer than a small layer.
        input_value, output_value = (onnxruntime.OrtValue.ortvalue_from_numpy(value) for value in (x, y))

        def run(session: Any) -> Run:
            binding = session.io_binding()
            binding.bind_ortvalue_input("input", input_value)
            binding.bind_ortvalue_output("output", output_value)
            return lambda: session.run_with_iobinding(binding)

        return _in_turn([run(session) for session in sessions])

    version = f"onnxruntime {onnxruntime.__version__}"
    return _through_onnx(f"{_machine(threads)}, {version}", start, channels_first=(32,))


def import_openvino() -> Any:
    """The module, without its telemetry, which forks this process: that is unsafe with JAX's threads."""
    missing_module: Any = None  # without the module it uses a stub
    sys.modules.setdefault("openvino_telemetry", missing_module)
    import openvino

    return openvino


def _openvino(threads: int) -> Runtime:
    openvino = import_openvino()
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
    """Runtime that executes ONNX graphs.

    Args:
      device: see `Runtime`.
      start: `(graph, x, copies) → Run`.
      channels_first: widths at which input and output of a single layer are NCHW instead of NHWC, because this needs
        fewer layout conversions. Inside a network, the runtime chooses the layout between layers.
    """
    from launch.runtimes import onnx_graphs, static_quantization

    def graph_of(program: Program) -> Any:
        return onnx_graphs.export(lambda x: program.function(program.weights, x), program.x)

    def prepare_network(program: Program, width: int, float_layers: Sequence[str] = ()) -> Run:
        graph, x = graph_of(program), np.asarray(program.x)
        if width == 8:
            graph = static_quantization.quantize(graph, [x], float_layers)
        return start(graph.SerializeToString(), x, 1)

    def prepare_layer(program: Program, width: int) -> Run:
        if width in channels_first and program.x.ndim > 2:
            program = _channels_first(program)
        graph, x = graph_of(program), np.asarray(program.x)
        if width == 8:
            graph = _with_integer_ends(static_quantization.quantize(graph, [x]))
            x = np.random.default_rng(0).integers(0, 256, x.shape, np.uint8)
        return start(graph.SerializeToString(), x, COPIES)

    return Runtime(device, (32, 8), prepare_network, prepare_layer)


def _channels_first(program: Program) -> Program:
    def function(weights: Any, x: jax.Array) -> jax.Array:
        return jnp.moveaxis(program.function(weights, jnp.moveaxis(x, 1, -1)), -1, 1)

    return Program(function, program.weights, jnp.moveaxis(program.x, -1, 1))


def _with_integer_ends(graph: Any) -> Any:
    """Graph with uint8 input and output: without the first QuantizeLinear and the last DequantizeLinear node.

    Inside a network, the neighbouring layers have these conversions.
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
