"""Executes a QONNX file with the package qonnx; needs that package alone. Usage: run_qonnx.py FILE

Reads arrays from standard input and writes the outputs to standard output, until there are no more.
"""

import functools
import io
import os
import sys
import warnings
from typing import IO, Any

import numpy as np


def send(stream: IO[bytes], x: np.ndarray) -> None:
    """Writes an array to a pipe: its length in 8 bytes, and NumPy's format."""
    held = io.BytesIO()
    np.save(held, x, allow_pickle=False)
    stream.write(len(held.getvalue()).to_bytes(8, "little") + held.getvalue())
    stream.flush()


def receive(stream: IO[bytes]) -> np.ndarray | None:
    """Reads an array that `send` wrote; None at the end of the stream."""
    length = stream.read(8)
    return np.load(io.BytesIO(stream.read(int.from_bytes(length, "little"))), allow_pickle=False) if length else None


def main() -> None:
    """Answers all inputs."""
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.core.onnx_exec import execute_onnx
    from qonnx.transformation.infer_shapes import InferShapes

    warnings.simplefilter("ignore")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # so that nothing else is printed among the arrays

    @functools.cache
    def model_for(shape: tuple[int, ...]) -> Any:
        """The model with all shapes known: it is executed node by node, into buffers."""
        model = ModelWrapper(sys.argv[1])
        model.set_tensor_shape("input", list(shape))
        model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = shape[0]
        return model.transform(InferShapes())

    while (x := receive(sys.stdin.buffer)) is not None:
        send(answers, execute_onnx(model_for(x.shape), {"input": x})["output"])


if __name__ == "__main__":
    main()
