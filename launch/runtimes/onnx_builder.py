"""Builder of ONNX graphs: nodes, constants, and the axis order of values (needs onnx)."""

import collections
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
from jax import export
from onnx import helper, numpy_helper


class ExportError(ValueError):
    """A function cannot be exported as an ONNX graph; the message names the operation."""


class Tensor(NamedTuple):
    """Value of the graph: its name, and the axis of the JAX value that each of its axes corresponds to."""

    name: str
    axes: tuple[int, ...]


Value = Tensor | np.ndarray
Arguments = Sequence[Any]  # values, at least one of them a `Tensor`


def module_path(scope: str) -> str:
    """The module path of a name stack in a jaxpr, as in `"stage0/conv"`.

    Linen names scopes after modules, the model first; methods (`module.method`) and einsums (`->`) are left out. A name
    in a transform, as in `vmap(mlp)`, stands for itself.
    """
    names = re.sub(r"\b(?:vmap|scan|remat|checkpoint|jvp|transpose)\(([^()/]*)\)", r"\1", scope).split("/")[1:]
    return "/".join(name for name in names if name and "->" not in name and "." not in name)


class GraphBuilder:
    """Nodes and constants of a graph.

    Attributes:
      containers: how the graph holds the operands of each layer, by path: the types of codes, inputs first.
    """

    def __init__(self, batch: Any) -> None:
        """`batch` is the first dimension of the graph's input: a number, or a symbol of `jax.export`."""
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.containers: collections.defaultdict[str, list[str]] = collections.defaultdict(list)
        self._batch = batch

    def rename(self, old: str, name: str) -> None:
        """Renames the output `old` of a node to `name`."""
        for node in self.nodes:
            node.input[:] = [name if known == old else known for known in node.input]
            node.output[:] = [name if known == old else known for known in node.output]

    def add(self, kind: str, inputs: Sequence[Value | str], *, name: str = "", **attributes: Any) -> str:
        """Appends a node and returns the name of its output."""
        output = f"v{len(self.nodes)}"
        names = [self.named(value) for value in inputs]
        self.nodes.append(
            helper.make_node(kind, names, [output], name=name or f"{kind}_{len(self.nodes)}", **attributes)
        )
        return output

    def size(self, dimension: Any, scope: str) -> Value:
        """A dimension as int64[1]: the batch times a number, or a number.

        Raises:
          ExportError: it depends on the batch in another way.
        """
        if not export.is_symbolic_dim(dimension):
            return np.asarray([dimension], np.int64)
        times = dimension // self._batch
        if export.is_symbolic_dim(times) or times * self._batch != dimension:
            raise ExportError(f"{scope}: a dimension of {dimension} for any batch is not exported")
        batch = Tensor(self.add("Shape", ["input"], start=0, end=1), (0,))
        return batch if times == 1 else Tensor(self.add("Mul", [batch, np.asarray([int(times)], np.int64)]), (0,))

    def named(self, value: Value | str) -> str:
        """Name of a value; an array becomes a constant of the graph."""
        if isinstance(value, Tensor):
            return value.name
        if isinstance(value, str):
            return value
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value, order="C"), name))
        return name

    def transposed(self, value: Any, axes: Sequence[int]) -> Any:
        """Value with its axes transposed to this order."""
        axes = tuple(axes)
        if isinstance(value, np.ndarray):
            return value.transpose(axes)
        if value.axes == axes:
            return value
        permutation = [value.axes.index(axis) for axis in axes]
        return Tensor(self.add("Transpose", [value], perm=permutation), axes)

    def straightened(self, value: Value) -> Value:
        """Value with its axes in the order of JAX."""
        return self.transposed(value, range(len(value.axes))) if isinstance(value, Tensor) else value
