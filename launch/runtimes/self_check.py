"""Self-check of exported networks: what runtimes make of a file, against the frozen network in JAX."""

import collections
import importlib.util
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import export

from launch.runtimes import run_qonnx
from launch.runtimes.engines import import_openvino

QONNX_PYTHON = "QONNX_PYTHON"  # variable of the environment: the Python that has the package
MOST_DIFFERING = 1e-3  # of the decisions, in the exact form


class Runner(NamedTuple):
    """A file in a runtime.

    Attributes:
      runtime: its name and version.
      run: `input -> output`.
      integer_kernels: how many convolutions and products it computes in integers, out of how many; None if unknown.
      close: ends what runs it.
    """

    runtime: str
    run: Callable[[np.ndarray], np.ndarray]
    integer_kernels: tuple[int, int] | None
    close: Callable[[], None] = lambda: None


class Known(NamedTuple):
    """Batches and what the network gives for them.

    Attributes:
      inputs: `[B, …]` each.
      expected: outputs of the frozen network, `[B, …, classes]` each.
      real: bool[B] each, False for padding.
    """

    inputs: list[np.ndarray]
    expected: list[np.ndarray]
    real: list[np.ndarray]


def with_onnxruntime(file: pathlib.Path) -> Runner:
    """An ONNX file in ONNX Runtime, with all its optimisations."""
    import onnx
    import onnxruntime

    with tempfile.TemporaryDirectory() as directory:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = f"{directory}/optimized.onnx"
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        nodes = onnx.load(options.optimized_model_filepath).graph.node
    kinds = collections.Counter(node.op_type for node in nodes)
    integer = sum(count for kind, count in kinds.items() if "Integer" in kind or kind.startswith("QLinear"))
    floats = kinds["Conv"] + kinds["FusedConv"] + kinds["MatMul"] + kinds["Gemm"] + kinds["MatMulNBits"]
    return Runner(
        f"onnxruntime {onnxruntime.__version__}",
        lambda x: session.run(None, {"input": x})[0],
        (integer, integer + floats),
    )


def with_openvino(file: pathlib.Path) -> Runner:
    """An ONNX file in OpenVINO on the CPU, whose floats are float32."""
    openvino = import_openvino()
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(str(file)), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    precisions = []
    for node in compiled.get_runtime_model().get_ops():
        told = node.get_rt_info()
        if told["layerType"].astype(str) in ("Convolution", "FullyConnected", "MatMul"):
            precisions.append(told["runtimePrecision"].astype(str))
    integer = sum(precision in ("u8", "i8") for precision in precisions)
    return Runner(
        f"openvino {openvino.__version__.split('-')[0]}",
        lambda x: np.array(compiled(x)[0]),
        (integer, len(precisions)),
    )


def with_qonnx(file: pathlib.Path) -> Runner:
    """A QONNX file, executed node by node by the package `qonnx` in a process of the Python that has it."""
    script = pathlib.Path(__file__).with_name("run_qonnx.py")
    python = os.environ.get(QONNX_PYTHON, sys.executable)
    process = subprocess.Popen([python, script, file], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin and process.stdout
    requests, answers = process.stdin, process.stdout

    def run(x: np.ndarray) -> np.ndarray:
        run_qonnx.send(requests, x)
        if (answer := run_qonnx.receive(answers)) is None:
            raise RuntimeError(f"{python} ended: see above")
        return answer

    def close() -> None:
        process.kill()
        process.communicate()

    return Runner("qonnx", run, None, close)


def with_jax(file: pathlib.Path) -> Runner:
    """A serialised program, read back by JAX."""
    call = jax.jit(export.deserialize(bytearray(file.read_bytes())).call)
    return Runner(f"jax {jax.__version__}", lambda x: np.asarray(call(x)), None)


ONNX_RUNTIMES = {"onnxruntime": with_onnxruntime, "openvino": with_openvino}
RUNTIMES = {".onnx": ONNX_RUNTIMES, ".qonnx": {"qonnx": with_qonnx}, ".stablehlo": {"jax": with_jax}}


def missing_runtimes(file: pathlib.Path) -> list[str]:
    """The runtimes of a file that are not installed."""
    found = {"qonnx"} if QONNX_PYTHON in os.environ else set()
    return [name for name in RUNTIMES[file.suffix] if name not in found and importlib.util.find_spec(name) is None]


def runtimes_of(file: pathlib.Path) -> list[tuple[str, Callable[[pathlib.Path], Runner]]]:
    """The installed runtimes that take the file, by name."""
    absent = missing_runtimes(file)
    return [(name, start) for name, start in RUNTIMES[file.suffix].items() if name not in absent]


def compare(outputs: Sequence[np.ndarray], known: Known) -> dict[str, Any]:
    """How the outputs of a runtime differ from those of the network.

    A decision is the class of the largest logit; of a single logit, whether it is above 0.

    Args:
      outputs: those of the runtime, `[B, …, classes]` each.
      known: what to compare with.

    Returns:
      `"examples"`, `"batch"`, `"decisions"`, `"largest_difference"`, `"median_difference"`, and of the `"differing"`
      decisions the example, the margin in the network and the largest difference of its logits.
    """
    found = [np.asarray(values, np.float32) for values in outputs]
    ours, theirs = (
        np.concatenate([values[real] for values, real in zip(each, known.real, strict=True)])
        for each in (found, known.expected)
    )
    examples = len(ours)
    ours, theirs = (_logits(values) for values in (ours, theirs))
    differences = np.abs(ours - theirs)
    differing = np.flatnonzero(_decisions(ours) != _decisions(theirs))
    ranked = np.sort(theirs, axis=1)
    margins = ranked[:, -1] - ranked[:, -2] if theirs.shape[1] > 1 else np.abs(theirs[:, 0])
    each = max(1, len(ours) // max(examples, 1))
    return {
        "examples": examples,
        "batch": len(known.inputs[0]),
        "decisions": len(ours),
        "largest_difference": float(differences.max(initial=0)) if np.isfinite(ours).all() else float("inf"),
        "median_difference": float(np.median(differences)),
        "differing": [
            {"example": int(i) // each, "margin": float(margins[i]), "difference": float(differences[i].max())}
            for i in differing
        ],
    }


def _logits(values: np.ndarray) -> np.ndarray:
    """Outputs as [decisions, classes]; [N] are single logits."""
    return values.reshape(-1, values.shape[-1] if values.ndim > 1 else 1)


def _decisions(logits: np.ndarray) -> np.ndarray:
    return logits.argmax(axis=1) if logits.shape[1] > 1 else logits[:, 0] > 0


def is_broken(checks: Sequence[dict[str, Any]]) -> bool:
    """Whether, in any of the checks, a runtime failed, or outputs are not finite."""
    return any("error" in each or not np.isfinite(each["largest_difference"]) for each in checks)


def has_too_many_differing(checks: Sequence[dict[str, Any]]) -> bool:
    """Whether more decisions differ, in any of the checks, than those of an exact file may."""
    return any(len(each["differing"]) > MOST_DIFFERING * each["decisions"] for each in checks)
