"""Builder of ONNX graphs: nodes, constants, and the axis order of values (needs onnx)."""

import collections
import re
from collections.abc import Callable, Sequence
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


class Operands(NamedTuple):
    """How a graph holds the operands of products.

    Attributes:
      rounded: `(graph, arguments, scope) -> value` is what `numerics.round_to_grid` computes of its arguments.
      factors: `(graph, left, right, path) -> (left, right)` are the factors of a product, of which one may be constant.
    """

    rounded: Callable[["GraphBuilder", Sequence[Value], str], Value]
    factors: Callable[["GraphBuilder", Value, Value, str], tuple[Value, Value]]


class GraphBuilder:
    """Nodes and constants of a graph.

    Attributes:
      operands: how it holds those of products.
      containers: the types in which it holds them, by the path of the layer, inputs first.
    """

    def __init__(self, batch: Any, operands: Operands) -> None:
        """`batch` is the first dimension of the graph's input: a number, or a symbol of `jax.export`."""
        self.operands = operands
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.containers: collections.defaultdict[str, list[str]] = collections.defaultdict(list)
        self._batch = batch
        self._named: collections.Counter[str] = collections.Counter()

    def rename(self, old: str, name: str) -> None:
        """Renames the output `old` of a node to `name`."""
        for node in self.nodes:
            node.input[:] = [name if known == old else known for known in node.input]
            node.output[:] = [name if known == old else known for known in node.output]

    def add(self, kind: str, inputs: Sequence[Value | str], *, name: str = "", **attributes: Any) -> str:
        """Appends a node and returns the name of its output.

        The first node of a name has it; those after it, as of a layer that is called again, have a number behind it.
        """
        output = f"v{len(self.nodes)}"
        names = [self.named(value) for value in inputs]
        name = name or kind
        self._named[name] += 1
        own = name if self._named[name] == 1 else f"{name}:{self._named[name]}"
        self.nodes.append(helper.make_node(kind, names, [output], name=own, **attributes))
        return output

    def origin(self, value: Tensor) -> str:
        """The kind of node that a value comes from, or that of the one before changes of its shape."""
        made = {node.output[0]: node for node in self.nodes}
        node = made.get(value.name)
        while node is not None and node.op_type in ("Reshape", "Transpose"):
            node = made.get(node.input[0])
        return node.op_type if node is not None else ""

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
