"""A JAX function as an ONNX graph, for the runtimes that networks are measured and deployed with (needs onnx).

The function is traced with its weights as constants. What depends on constants alone is computed here; the rest goes
node by node. Flax computes with the channels last and ONNX with the channels first: a value remembers the order in
which its axes lie, so that a chain of convolutions needs no transposition.

Exported are the operations that inference of the networks here needs; anything else is refused by name.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.extend.core
import numpy as np
import onnx
from onnx import helper, numpy_helper

from hwcost.workload import module_path

OPSET = 17
IR_VERSION = 9  # the one that came with the opset: older runtimes read it


class ExportError(ValueError):
    """A function that cannot be written as an ONNX graph; the message names the operation."""


class Tensor(NamedTuple):
    """A value of the graph: its name, and for each of its axes which axis of the JAX value that is."""

    name: str
    axes: tuple[int, ...]


Value = Tensor | np.ndarray
Arguments = Sequence[Any]  # values, of which one at least is a `Tensor`


def export(function: Callable[[jax.Array], jax.Array], example: Any, *, name: str = "network") -> onnx.ModelProto:
    """The graph of `function`, with one input `"input"` and one output `"output"`.

    Args:
      function: of one array, to one array; what it closes over becomes constants.
      example: an array, or a `ShapeDtypeStruct`; the graph takes inputs of exactly this shape.
      name: of the graph.

    Nodes of layers are named after their paths: `"stage0/conv"`.

    Raises:
      ExportError: an operation that cannot be exported.
    """
    closed = jax.make_jaxpr(function)(example)
    [output] = closed.out_avals
    graph = _Graph()
    x = Tensor("input", tuple(range(len(example.shape))))
    [result] = graph.run(closed.jaxpr, [np.asarray(c) for c in closed.consts], [x], "")
    result = graph.straightened(result)
    if not isinstance(result, Tensor) or result == x:
        raise ExportError("what the function gives is its input or a constant: there is nothing to export")
    graph.rename(result.name, "output")
    element = helper.np_dtype_to_tensor_dtype
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            name,
            [helper.make_tensor_value_info("input", element(np.dtype(example.dtype)), example.shape)],
            [helper.make_tensor_value_info("output", element(np.dtype(output.dtype)), output.shape)],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="fliqs-jax",
    )
    onnx.checker.check_model(model)
    return model


class _Graph:
    """The nodes and constants written so far."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def run(self, jaxpr: Any, consts: Sequence[Value], inputs: Sequence[Value], scope: str) -> list[Value]:
        """Writes a jaxpr's equations; returns its outputs."""
        values: dict[Any, Value] = dict(zip(jaxpr.constvars, consts, strict=True))
        values.update(zip(jaxpr.invars, inputs, strict=True))

        def read(variable: Any) -> Value:
            return np.asarray(variable.val) if isinstance(variable, jax.extend.core.Literal) else values[variable]

        for equation in jaxpr.eqns:
            arguments = [read(variable) for variable in equation.invars]
            inner_scope = "/".join(filter(None, (scope, str(equation.source_info.name_stack))))
            results = self._equation(equation, arguments, inner_scope)
            values.update(zip(equation.outvars, results, strict=True))
        return [read(variable) for variable in jaxpr.outvars]

    def _equation(self, equation: Any, arguments: Arguments, scope: str) -> Sequence[Value]:
        if equation.primitive.name == "platform_index":
            # What is written for one platform alone has no place in a graph: the last branch is for all others.
            return [np.asarray(len(equation.params["platforms"]) - 1, np.int32)]
        if equation.primitive.name == "cond" and isinstance(arguments[0], np.ndarray):
            branch = equation.params["branches"][int(arguments[0])]
            return self.run(branch.jaxpr, [np.asarray(c) for c in branch.consts], arguments[1:], scope)
        if not any(isinstance(argument, Tensor) for argument in arguments):
            results = equation.primitive.bind(*arguments, **equation.params)
            return [np.asarray(r) for r in (results if equation.primitive.multiple_results else [results])]
        inner = list(jax.extend.core.jaxprs_in_params(equation.params))
        primitive = equation.primitive.name
        if primitive in ("jit", "custom_jvp_call", "custom_vjp_call", "remat2", "checkpoint"):
            body = equation.params["call_jaxpr"] if "call_jaxpr" in equation.params else equation.params["jaxpr"]
            consts = [np.asarray(c) for c in getattr(body, "consts", ())]
            return self.run(inner[0], consts, arguments, scope)
        if primitive not in OPERATIONS:
            raise ExportError(f"{scope or 'the function'}: {primitive} has no counterpart in ONNX here")
        return [OPERATIONS[primitive](self, equation, arguments, scope)]

    def rename(self, old: str, name: str) -> None:
        """Calls the result of a node `name`."""
        for node in self.nodes:
            node.input[:] = [name if known == old else known for known in node.input]
            node.output[:] = [name if known == old else known for known in node.output]

    def add(self, kind: str, inputs: Sequence[Value | str], *, name: str = "", **attributes: Any) -> str:
        """Appends a node; returns the name of its output."""
        output = f"v{len(self.nodes)}"
        names = [self.named(value) for value in inputs]
        self.nodes.append(
            helper.make_node(kind, names, [output], name=name or f"{kind}_{len(self.nodes)}", **attributes)
        )
        return output

    def named(self, value: Value | str) -> str:
        """The name of a value; an array becomes a constant."""
        if isinstance(value, Tensor):
            return value.name
        if isinstance(value, str):
            return value
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def laid(self, value: Any, axes: Sequence[int]) -> Any:
        """The value with its axes in this order."""
        axes = tuple(axes)
        if isinstance(value, np.ndarray):
            return value.transpose(axes)
        if value.axes == axes:
            return value
        permutation = [value.axes.index(axis) for axis in axes]
        return Tensor(self.add("Transpose", [value], perm=permutation), axes)

    def straightened(self, value: Value) -> Value:
        """The value with its axes as JAX has them."""
        return self.laid(value, range(len(value.axes))) if isinstance(value, Tensor) else value


def _elementwise(kind: str, graph: _Graph, _: Any, arguments: Arguments, __: str) -> Tensor:
    axes = max((a.axes for a in arguments if isinstance(a, Tensor)), key=len)  # others may be scalars
    return Tensor(graph.add(kind, [_broadcastable(graph, a, axes) for a in arguments]), axes)


def _broadcastable(graph: _Graph, value: Value, axes: Sequence[int]) -> Value:
    """A constant without leading axes of size 1: as runtimes know the biases that they fuse."""
    if isinstance(value, Tensor):
        return graph.laid(value, axes) if value.axes else value
    if value.ndim == 0:
        return value
    constant = value.transpose(axes)
    while constant.ndim > 1 and constant.shape[0] == 1:
        constant = constant[0]
    return constant


def _subtract(graph: _Graph, equation: Any, arguments: Arguments, scope: str) -> Tensor:
    """A constant is added instead: runtimes fold additions into the convolution before."""
    left, right = arguments
    if isinstance(right, np.ndarray):
        return _elementwise("Add", graph, equation, (left, -right), scope)
    return _elementwise("Sub", graph, equation, arguments, scope)


def _max(graph: _Graph, equation: Any, arguments: Arguments, scope: str) -> Tensor:
    x, bound = arguments
    if isinstance(bound, np.ndarray) and bound.ndim == 0 and bound == 0:
        return _elementwise("Relu", graph, equation, [x], scope)
    return _elementwise("Max", graph, equation, arguments, scope)


def _min(graph: _Graph, equation: Any, arguments: Arguments, scope: str) -> Tensor:
    constant = [a for a in arguments if isinstance(a, np.ndarray) and a.ndim == 0]
    if not constant:
        return _elementwise("Min", graph, equation, arguments, scope)
    [x] = (a for a in arguments if isinstance(a, Tensor))
    return Tensor(graph.add("Clip", [x, "", constant[0]]), x.axes)


def _chain(*kinds: str) -> Callable[..., Tensor]:
    """One operation of one argument after another."""

    def run(graph: _Graph, equation: Any, arguments: Arguments, scope: str) -> Tensor:
        [value] = arguments
        for kind in kinds:
            value = _elementwise(kind, graph, equation, [value], scope)
        return value

    return run


def _erfc(graph: _Graph, equation: Any, arguments: Arguments, scope: str) -> Tensor:
    erf = _elementwise("Erf", graph, equation, arguments, scope)
    return _elementwise("Sub", graph, equation, [np.ones((), equation.outvars[0].aval.dtype), erf], scope)


def _square(graph: _Graph, equation: Any, arguments: Arguments, scope: str) -> Tensor:
    return _elementwise("Mul", graph, equation, [*arguments, *arguments], scope)


def _power(graph: _Graph, equation: Any, arguments: Arguments, scope: str) -> Tensor:
    exponent = np.asarray(equation.params["y"], equation.outvars[0].aval.dtype)
    return _elementwise("Pow", graph, equation, [*arguments, exponent], scope)


def _cast(graph: _Graph, equation: Any, arguments: Arguments, _: str) -> Tensor:
    [x] = arguments
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(equation.params["new_dtype"]))
    return Tensor(graph.add("Cast", [x], to=kind), x.axes)


def _select(graph: _Graph, equation: Any, arguments: Arguments, scope: str) -> Tensor:
    which, if_false, if_true = arguments
    return _elementwise("Where", graph, equation, [which, if_true, if_false], scope)


def _identity(_: _Graph, __: Any, arguments: Arguments, ___: str) -> Value:
    return arguments[0]


def _convolution(graph: _Graph, equation: Any, arguments: Arguments, scope: str) -> Tensor:
    x, kernel = arguments
    params = equation.params
    order = params["dimension_numbers"]
    if params["batch_group_count"] != 1 or any(d != 1 for d in params["lhs_dilation"]):
        raise ExportError(f"{scope}: transposed convolutions and batch groups are not exported")
    before, after = zip(*params["padding"], strict=True)
    output = graph.add(
        "Conv",
        [graph.laid(x, order.lhs_spec), graph.laid(kernel, order.rhs_spec)],
        name=module_path(scope),
        strides=list(params["window_strides"]),
        dilations=list(params["rhs_dilation"]),
        pads=[*before, *after],
        group=params["feature_group_count"],
        kernel_shape=[equation.invars[1].aval.shape[axis] for axis in order.rhs_spec[2:]],
    )
    return Tensor(output, tuple(order.out_spec))


def _dot(graph: _Graph, equation: Any, arguments: Arguments, scope: str) -> Tensor:
    """MatMul over values reshaped to [batch, rows, contracted] and [batch, contracted, columns]."""
    (contracting, batch) = equation.params["dimension_numbers"]
    shapes = [variable.aval.shape for variable in equation.invars]
    free = [
        [axis for axis in range(len(shape)) if axis not in (*contracting[side], *batch[side])]
        for side, shape in enumerate(shapes)
    ]
    orders = ((*batch[0], *free[0], *contracting[0]), (*batch[1], *contracting[1], *free[1]))

    def size(side: int, axes: Sequence[int]) -> int:
        return math.prod(shapes[side][axis] for axis in axes)

    head = [size(0, batch[0])] if batch[0] else []
    contracted = size(0, contracting[0])
    flat = ([*head, size(0, free[0]), contracted], [*head, contracted, size(1, free[1])])
    operands = []
    for side, argument in enumerate(arguments):
        value = graph.laid(argument, orders[side])
        operands.append(_reshaped(graph, value, [shapes[side][axis] for axis in orders[side]], flat[side]))
    product = graph.add("MatMul", operands, name=module_path(scope))
    shape = equation.outvars[0].aval.shape
    straight = Tensor(product, tuple(range(len(shape))))
    return _reshaped(graph, straight, [*head, size(0, free[0]), size(1, free[1])], shape)


def _reshaped(graph: _Graph, value: Value, old: Sequence[int], new: Sequence[int]) -> Any:
    """`value`, whose axes lie in the order of `old`, in another shape."""
    if tuple(old) == tuple(new):
        return value
    if isinstance(value, np.ndarray):
        return value.reshape(new)
    name = graph.add("Reshape", [value.name, np.asarray(new, np.int64)])
    return Tensor(name, tuple(range(len(new))))


def _reshape(graph: _Graph, equation: Any, arguments: Arguments, _: str) -> Tensor:
    """Also `squeeze`."""
    value = graph.straightened(arguments[0])
    return _reshaped(graph, value, equation.invars[0].aval.shape, equation.outvars[0].aval.shape)


def _broadcast(graph: _Graph, equation: Any, arguments: Arguments, _: str) -> Tensor:
    old, new = equation.invars[0].aval.shape, equation.params["shape"]
    kept = dict(zip(equation.params["broadcast_dimensions"], old, strict=True))
    aligned = [kept.get(axis, 1) for axis in range(len(new))]
    value = _reshaped(graph, graph.straightened(arguments[0]), old, aligned)
    if tuple(aligned) == tuple(new):
        return value
    return Tensor(graph.add("Expand", [value.name, np.asarray(new, np.int64)]), value.axes)


def _transpose(_: _Graph, equation: Any, arguments: Arguments, __: str) -> Tensor:
    """Moves nothing: only says where the axes are."""
    [x] = arguments
    permutation = equation.params["permutation"]
    return Tensor(x.name, tuple(permutation.index(axis) for axis in x.axes))


def _reduce(kind: str, graph: _Graph, equation: Any, arguments: Arguments, _: str) -> Tensor:
    [x] = arguments
    gone = equation.params["axes"]
    where = sorted(x.axes.index(axis) for axis in gone)
    if kind == "ReduceSum":  # the only one whose axes are an input in this opset
        name = graph.add(kind, [x, np.asarray(where, np.int64)], keepdims=0)
    else:
        name = graph.add(kind, [x], axes=where, keepdims=0)
    left = [axis for axis in x.axes if axis not in gone]
    return Tensor(name, tuple(sorted(left).index(axis) for axis in left))


def _pool(kind: str, graph: _Graph, equation: Any, arguments: Arguments, scope: str) -> Tensor:
    params = equation.params
    window = params["window_dimensions"]
    if (
        len(window) < 3
        or window[0] != 1
        or window[-1] != 1
        or {*params["base_dilation"], *params["window_dilation"]} != {1}
    ):
        raise ExportError(f"{scope}: only windows over the axes between batch and channels are exported, got {window}")
    x = graph.laid(arguments[0], (0, len(window) - 1, *range(1, len(window) - 1)))
    before, after = zip(*params["padding"][1:-1], strict=True)
    extent = {
        "kernel_shape": list(window[1:-1]),
        "strides": list(params["window_strides"][1:-1]),
        "pads": [*before, *after],
    }
    if kind == "MaxPool":
        return Tensor(graph.add(kind, [x], **extent), x.axes)
    mean = Tensor(graph.add("AveragePool", [x], count_include_pad=1, **extent), x.axes)
    size = np.asarray(math.prod(window), equation.outvars[0].aval.dtype)
    return _elementwise("Mul", graph, equation, [mean, size], scope)


def _concatenate(graph: _Graph, equation: Any, arguments: Arguments, _: str) -> Tensor:
    axes = next(a.axes for a in arguments if isinstance(a, Tensor))
    parts = [graph.laid(a, axes) for a in arguments]
    return Tensor(graph.add("Concat", parts, axis=axes.index(equation.params["dimension"])), axes)


def _slice(graph: _Graph, equation: Any, arguments: Arguments, _: str) -> Tensor:
    [x] = arguments
    rank = len(x.axes)
    bounds = [equation.params["start_indices"], equation.params["limit_indices"], range(rank)]
    bounds.append(equation.params["strides"] or [1] * rank)
    starts, limits, _axes, strides = ([list(bound)[axis] for axis in x.axes] for bound in bounds)
    ends = [np.asarray(values, np.int64) for values in (starts, limits, range(rank), strides)]
    return Tensor(graph.add("Slice", [x, *ends]), x.axes)


def _gather(graph: _Graph, equation: Any, arguments: Arguments, scope: str) -> Tensor:
    """Rows of a table, as of embeddings."""
    table, indices = arguments
    order = equation.params["dimension_numbers"]
    rank = len(equation.outvars[0].aval.shape)
    rows = (
        order.collapsed_slice_dims == (0,)
        and order.start_index_map == (0,)
        and tuple(equation.params["slice_sizes"][1:]) == equation.invars[0].aval.shape[1:]
        and order.offset_dims == tuple(range(rank - len(equation.params["slice_sizes"]) + 1, rank))
    )
    if not rows:
        raise ExportError(f"{scope}: of gathers only those of whole rows are exported")
    shape = equation.invars[1].aval.shape
    index = _reshaped(graph, graph.straightened(indices), shape, shape[:-1])
    return Tensor(graph.add("Gather", [graph.straightened(table), index], axis=0), tuple(range(rank)))


Operation = Callable[[_Graph, Any, Sequence[Value], str], Value]
OPERATIONS: dict[str, Operation] = {
    "conv_general_dilated": _convolution,
    "dot_general": _dot,
    "reduce_window_max": partial(_pool, "MaxPool"),
    "reduce_window_sum": partial(_pool, "AveragePool"),
    "reduce_sum": partial(_reduce, "ReduceSum"),
    "reduce_max": partial(_reduce, "ReduceMax"),
    "add": partial(_elementwise, "Add"),
    "add_any": partial(_elementwise, "Add"),
    "sub": _subtract,
    "mul": partial(_elementwise, "Mul"),
    "div": partial(_elementwise, "Div"),
    "max": _max,
    "min": _min,
    "lt": partial(_elementwise, "Less"),
    "gt": partial(_elementwise, "Greater"),
    "exp": _chain("Exp"),
    "log": _chain("Log"),
    "neg": _chain("Neg"),
    "abs": _chain("Abs"),
    "tanh": _chain("Tanh"),
    "logistic": _chain("Sigmoid"),
    "sqrt": _chain("Sqrt"),
    "rsqrt": _chain("Sqrt", "Reciprocal"),
    "erf": _chain("Erf"),
    "erfc": _erfc,
    "square": _square,
    "integer_pow": _power,
    "convert_element_type": _cast,
    "select_n": _select,
    "stop_gradient": _identity,
    "copy": _identity,
    "reshape": _reshape,
    "squeeze": _reshape,
    "expand_dims": _reshape,
    "broadcast_in_dim": _broadcast,
    "transpose": _transpose,
    "concatenate": _concatenate,
    "slice": _slice,
    "gather": _gather,
}
