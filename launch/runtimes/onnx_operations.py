"""ONNX nodes for each JAX primitive (needs onnx)."""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from jax.export import is_symbolic_dim
from onnx import helper

from launch.runtimes.onnx_builder import Arguments, ExportError, GraphBuilder, Tensor, Value, module_path


def _elementwise(kind: str, graph: GraphBuilder, _: Any, arguments: Arguments, __: str) -> Tensor:
    axes = max((a.axes for a in arguments if isinstance(a, Tensor)), key=len)  # the others may be scalars
    return Tensor(graph.add(kind, [_broadcastable(graph, a, axes) for a in arguments]), axes)


def _broadcastable(graph: GraphBuilder, value: Value, axes: Sequence[int]) -> Value:
    """Drops leading axes of size 1 from a constant, since runtimes fuse only biases of that shape."""
    if isinstance(value, Tensor):
        return graph.transposed(value, axes) if value.axes else value
    if value.ndim == 0:
        return value
    constant = value.transpose(axes)
    while constant.ndim > 1 and constant.shape[0] == 1:
        constant = constant[0]
    return constant


def _multiply(graph: GraphBuilder, equation: Any, arguments: Arguments, scope: str) -> Tensor:
    """Leaves out a factor of 1."""
    for factor, other in itertools.permutations(arguments):
        if isinstance(factor, np.ndarray) and factor.size == 1 and factor == 1 and isinstance(other, Tensor):
            return other
    return _elementwise("Mul", graph, equation, arguments, scope)


def _subtract(graph: GraphBuilder, equation: Any, arguments: Arguments, scope: str) -> Tensor:
    """Adds the negative of a constant instead, since runtimes fuse additions into the preceding convolution."""
    left, right = arguments
    if isinstance(right, np.ndarray):
        return _elementwise("Add", graph, equation, (left, -right), scope)
    return _elementwise("Sub", graph, equation, arguments, scope)


def _max(graph: GraphBuilder, equation: Any, arguments: Arguments, scope: str) -> Tensor:
    x, bound = arguments
    if isinstance(bound, np.ndarray) and bound.ndim == 0 and bound == 0:
        return _elementwise("Relu", graph, equation, [x], scope)
    return _elementwise("Max", graph, equation, arguments, scope)


def _min(graph: GraphBuilder, equation: Any, arguments: Arguments, scope: str) -> Tensor:
    constant = [a for a in arguments if isinstance(a, np.ndarray) and a.ndim == 0]
    if not constant:
        return _elementwise("Min", graph, equation, arguments, scope)
    [x] = (a for a in arguments if isinstance(a, Tensor))
    return Tensor(graph.add("Clip", [x, "", constant[0]]), x.axes)


def _chain(*kinds: str) -> Callable[..., Tensor]:
    """Makes a sequence of operations with one argument."""

    def run(graph: GraphBuilder, equation: Any, arguments: Arguments, scope: str) -> Tensor:
        [value] = arguments
        for kind in kinds:
            value = _elementwise(kind, graph, equation, [value], scope)
        return value

    return run


def _erfc(graph: GraphBuilder, equation: Any, arguments: Arguments, scope: str) -> Tensor:
    erf = _elementwise("Erf", graph, equation, arguments, scope)
    return _elementwise("Sub", graph, equation, [np.ones((), equation.outvars[0].aval.dtype), erf], scope)


def _square(graph: GraphBuilder, equation: Any, arguments: Arguments, scope: str) -> Tensor:
    return _elementwise("Mul", graph, equation, [*arguments, *arguments], scope)


def _power(graph: GraphBuilder, equation: Any, arguments: Arguments, scope: str) -> Tensor:
    exponent = np.asarray(equation.params["y"], equation.outvars[0].aval.dtype)
    return _elementwise("Pow", graph, equation, [*arguments, exponent], scope)


def _cast(graph: GraphBuilder, equation: Any, arguments: Arguments, _: str) -> Tensor:
    [x] = arguments
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(equation.params["new_dtype"]))
    return Tensor(graph.add("Cast", [x], to=kind), x.axes)


def _select(graph: GraphBuilder, equation: Any, arguments: Arguments, scope: str) -> Tensor:
    which, if_false, if_true = arguments
    return _elementwise("Where", graph, equation, [which, if_true, if_false], scope)


def _identity(_: GraphBuilder, __: Any, arguments: Arguments, ___: str) -> Value:
    return arguments[0]


def _convolution(graph: GraphBuilder, equation: Any, arguments: Arguments, scope: str) -> Tensor:
    x, kernel = arguments
    params = equation.params
    order = params["dimension_numbers"]
    if params["batch_group_count"] != 1 or any(d != 1 for d in params["lhs_dilation"]):
        raise ExportError(f"{scope}: transposed convolutions and batch groups are not exported")
    before, after = zip(*params["padding"], strict=True)
    path = module_path(scope)
    output = graph.add(
        "Conv",
        graph.operands.factors(
            graph, graph.transposed(x, order.lhs_spec), graph.transposed(kernel, order.rhs_spec), path
        ),
        name=path,
        strides=list(params["window_strides"]),
        dilations=list(params["rhs_dilation"]),
        pads=[*before, *after],
        group=params["feature_group_count"],
        kernel_shape=[equation.invars[1].aval.shape[axis] for axis in order.rhs_spec[2:]],
    )
    return Tensor(output, tuple(order.out_spec))


def _dot(graph: GraphBuilder, equation: Any, arguments: Arguments, scope: str) -> Tensor:
    """MatMul of values reshaped to [batch, rows, contracted] and [batch, contracted, columns]."""
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

    def flattened(side: int) -> Value:
        value = graph.transposed(arguments[side], orders[side])
        return _reshaped(graph, value, [shapes[side][axis] for axis in orders[side]], flat[side])

    path = module_path(scope)
    factors = graph.operands.factors(graph, flattened(0), flattened(1), path)
    product = graph.add("MatMul", factors, name=path)
    shape = equation.outvars[0].aval.shape
    straight = Tensor(product, tuple(range(len(shape))))
    return _reshaped(graph, straight, [*head, size(0, free[0]), size(1, free[1])], shape)


def _reshaped(graph: GraphBuilder, value: Value, old: Sequence[int], new: Sequence[int]) -> Any:
    """Reshapes `value`, of shape `old`, to the shape `new`."""
    if tuple(old) == tuple(new):
        return value
    if isinstance(value, np.ndarray):
        return value.reshape(new)
    # Dimensions grow with the batch one at a time, and ONNX finds out the one that is −1.
    sizes = [-1 if is_symbolic_dim(size) else size for size in new]
    name = graph.add("Reshape", [value.name, np.asarray(sizes, np.int64)])
    return Tensor(name, tuple(range(len(new))))


def _reshape(graph: GraphBuilder, equation: Any, arguments: Arguments, _: str) -> Tensor:
    """Reshape, squeeze and expand_dims."""
    value = graph.straightened(arguments[0])
    return _reshaped(graph, value, equation.invars[0].aval.shape, equation.outvars[0].aval.shape)


def _broadcast(graph: GraphBuilder, equation: Any, arguments: Arguments, scope: str) -> Tensor:
    old, new = equation.invars[0].aval.shape, equation.params["shape"]
    kept = dict(zip(equation.params["broadcast_dimensions"], old, strict=True))
    aligned = [kept.get(axis, 1) for axis in range(len(new))]
    value = _reshaped(graph, graph.straightened(arguments[0]), old, aligned)
    if tuple(aligned) == tuple(new):
        return value
    # An axis that is there already needs no size.
    missing = [1 if there == size else size for there, size in zip(aligned, new, strict=True)]
    sizes = [graph.size(size, scope) for size in missing]
    constant = [size for size in sizes if isinstance(size, np.ndarray)]
    shape = np.concatenate(constant) if len(constant) == len(sizes) else graph.add("Concat", sizes, axis=0)
    return Tensor(graph.add("Expand", [value, shape]), tuple(range(len(new))))


def _transpose(_: GraphBuilder, equation: Any, arguments: Arguments, __: str) -> Tensor:
    """Changes only the axis order of the value; no node is needed."""
    [x] = arguments
    permutation = equation.params["permutation"]
    return Tensor(x.name, tuple(permutation.index(axis) for axis in x.axes))


def _reduce(kind: str, graph: GraphBuilder, equation: Any, arguments: Arguments, _: str) -> Tensor:
    [x] = arguments
    reduced = equation.params["axes"]
    where = sorted(x.axes.index(axis) for axis in reduced)
    name = graph.add(kind, [x, np.asarray(where, np.int64)], keepdims=0)
    left = [axis for axis in x.axes if axis not in reduced]
    return Tensor(name, tuple(sorted(left).index(axis) for axis in left))


def _pool(kind: str, graph: GraphBuilder, equation: Any, arguments: Arguments, scope: str) -> Tensor:
    params = equation.params
    window = params["window_dimensions"]
    if (
        len(window) < 3
        or window[0] != 1
        or window[-1] != 1
        or {*params["base_dilation"], *params["window_dilation"]} != {1}
    ):
        raise ExportError(f"{scope}: only windows over the axes between batch and channels are exported, got {window}")
    x = graph.transposed(arguments[0], (0, len(window) - 1, *range(1, len(window) - 1)))
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


def _concatenate(graph: GraphBuilder, equation: Any, arguments: Arguments, _: str) -> Tensor:
    axes = next(a.axes for a in arguments if isinstance(a, Tensor))
    parts = [graph.transposed(a, axes) for a in arguments]
    return Tensor(graph.add("Concat", parts, axis=axes.index(equation.params["dimension"])), axes)


def _slice(graph: GraphBuilder, equation: Any, arguments: Arguments, scope: str) -> Tensor:
    [x] = arguments
    starts, limits = equation.params["start_indices"], equation.params["limit_indices"]
    strides = equation.params["strides"] or [1] * len(x.axes)
    # Whole axes are left out, among them a batch of any size.
    whole = [*zip([0] * len(x.axes), equation.invars[0].aval.shape, [1] * len(x.axes), strict=True)]
    cut = [axis for axis, part in enumerate(zip(starts, limits, strides, strict=True)) if part != whole[axis]]
    if not cut:
        return x
    if any(is_symbolic_dim(limits[axis]) for axis in cut):
        raise ExportError(f"{scope}: a part of a batch of any size is not exported")
    places = [x.axes.index(axis) for axis in cut]
    parts = ([bound[axis] for axis in cut] for bound in (starts, limits))
    ends = [*parts, places, [strides[axis] for axis in cut]]
    return Tensor(graph.add("Slice", [x, *(np.asarray(values, np.int64) for values in ends)]), x.axes)


def _split(graph: GraphBuilder, equation: Any, arguments: Arguments, _: str) -> list[Tensor]:
    [x] = arguments
    axis, sizes = x.axes.index(equation.params["axis"]), equation.params["sizes"]
    ends = np.cumsum([0, *sizes])
    bounds = [
        [np.asarray([value], np.int64) for value in (start, end, axis)] for start, end in itertools.pairwise(ends)
    ]
    return [Tensor(graph.add("Slice", [x, *bound]), x.axes) for bound in bounds]


def _pad(graph: GraphBuilder, equation: Any, arguments: Arguments, scope: str) -> Tensor:
    x, value = arguments
    low, high, between = zip(*equation.params["padding_config"], strict=True)
    if any(between) or min(*low, *high) < 0 or not isinstance(value, np.ndarray):
        raise ExportError(f"{scope}: of pads only those with a constant around the values are exported")
    pads = [sizes[axis] for sizes in (low, high) for axis in x.axes]
    return Tensor(graph.add("Pad", [x, np.asarray(pads, np.int64), value]), x.axes)


def _clamp(graph: GraphBuilder, equation: Any, arguments: Arguments, scope: str) -> Tensor:
    low, x, high = arguments
    return _elementwise("Min", graph, equation, [_elementwise("Max", graph, equation, [x, low], scope), high], scope)


def _not_equal(graph: GraphBuilder, equation: Any, arguments: Arguments, scope: str) -> Tensor:
    return _elementwise("Not", graph, equation, [_elementwise("Equal", graph, equation, arguments, scope)], scope)


def _added(number: float, kind: str, *, first: bool) -> Callable[..., Tensor]:
    """Makes an operation of one argument to which a number is added first, or last."""

    def run(graph: GraphBuilder, equation: Any, arguments: Arguments, scope: str) -> Tensor:
        term = np.asarray(number, equation.outvars[0].aval.dtype)
        steps = (("Add", [term]), (kind, []))
        [value] = arguments
        for step, more in steps if first else reversed(steps):
            value = _elementwise(step, graph, equation, [value, *more], scope)
        return value

    return run


def _gather(graph: GraphBuilder, equation: Any, arguments: Arguments, scope: str) -> Tensor:
    """Gather of whole slices along one axis, such as rows of an embedding."""
    table, indices = arguments
    order = equation.params["dimension_numbers"]
    shape, whole = equation.invars[1].aval.shape, equation.invars[0].aval.shape
    rank, count = len(equation.outvars[0].aval.shape), len(shape) - 1
    axis = order.start_index_map[0]
    slices = (
        order.collapsed_slice_dims == order.start_index_map == (axis,)
        and tuple(equation.params["slice_sizes"]) == (*whole[:axis], 1, *whole[axis + 1 :])
        and order.offset_dims == tuple(i for i in range(rank) if not axis <= i < axis + count)
    )
    if not slices:
        raise ExportError(f"{scope}: of gathers only those of whole slices along one axis are exported")
    index = _reshaped(graph, graph.straightened(indices), shape, shape[:-1])
    return Tensor(graph.add("Gather", [graph.straightened(table), index], axis=axis), tuple(range(rank)))


def _logical(kind: str, graph: GraphBuilder, equation: Any, arguments: Arguments, scope: str) -> Tensor:
    if equation.outvars[0].aval.dtype != bool:
        raise ExportError(f"{scope}: {equation.primitive.name} of the bits of integers has no counterpart in ONNX here")
    return _elementwise(kind, graph, equation, arguments, scope)


def _dimension(graph: GraphBuilder, equation: Any, _: Arguments, scope: str) -> Tensor:
    """A number of examples, or a multiple of it, as a scalar."""
    number = graph.add("Squeeze", [graph.size(equation.params["dim"], scope), np.zeros(1, np.int64)])
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(equation.outvars[0].aval.dtype))
    return Tensor(graph.add("Cast", [number], to=kind), ())


Operation = Callable[[GraphBuilder, Any, Sequence[Value], str], Any]  # a value; of several results a sequence
OPERATIONS: dict[str, Operation] = {
    "conv_general_dilated": _convolution,
    "dot_general": _dot,
    "reduce_window_max": partial(_pool, "MaxPool"),
    "reduce_window_sum": partial(_pool, "AveragePool"),
    "reduce_sum": partial(_reduce, "ReduceSum"),
    "reduce_max": partial(_reduce, "ReduceMax"),
    "reduce_min": partial(_reduce, "ReduceMin"),
    "add": partial(_elementwise, "Add"),
    "add_any": partial(_elementwise, "Add"),
    "sub": _subtract,
    "mul": _multiply,
    "div": partial(_elementwise, "Div"),
    "max": _max,
    "min": _min,
    "clamp": _clamp,
    "dim_as_value": _dimension,
    "pow": partial(_elementwise, "Pow"),
    "lt": partial(_elementwise, "Less"),
    "le": partial(_elementwise, "LessOrEqual"),
    "gt": partial(_elementwise, "Greater"),
    "ge": partial(_elementwise, "GreaterOrEqual"),
    "eq": partial(_elementwise, "Equal"),
    "ne": _not_equal,
    "and": partial(_logical, "And"),
    "or": partial(_logical, "Or"),
    "not": partial(_logical, "Not"),
    "exp": _chain("Exp"),
    "log1p": _added(1, "Log", first=True),
    "expm1": _added(-1, "Exp", first=False),
    "sin": _chain("Sin"),
    "cos": _chain("Cos"),
    "sign": _chain("Sign"),
    "floor": _chain("Floor"),
    "ceil": _chain("Ceil"),
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
    "split": _split,
    "pad": _pad,
    "gather": _gather,
}
