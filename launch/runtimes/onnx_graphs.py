"""Export of JAX functions as ONNX graphs (needs onnx).

The function is traced to a jaxpr, with its weights as constants. Equations of constants only are evaluated; all others
become nodes. Flax computes in NHWC and ONNX in NCHW: each value keeps track of its axis order, so a chain of
convolutions needs no transposition. Rounding to a number format is one operation (`onnx_formats`), and constants that
are multiplied, such as codes, are stored in the smallest type that holds them exactly.

The operations of inference of the networks here are supported; any other one is an error that names it.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend.core
import numpy as np
import onnx
from jax.export import is_symbolic_dim
from onnx import helper

from launch.runtimes.onnx_builder import Arguments, ExportError, GraphBuilder, Operands, Tensor, Value
from launch.runtimes.onnx_formats import EXACT
from launch.runtimes.onnx_operations import OPERATIONS

OPSET = 21  # the first with types of 4 bits
IR_VERSION = 10  # not the newest, so that older runtimes can read the graph
BATCH = "batch"  # the name of the first dimension, if it is of any size
ROUNDING = {"round_to_grid", "round_within_range"}  # of `aqt_like.numerics`


class Exported(NamedTuple):
    """A graph.

    Attributes:
      model: the graph.
      containers: how it holds the operands of each layer, by path; see `GraphBuilder`.
    """

    model: onnx.ModelProto
    containers: dict[str, list[str]]


def export(function: Callable[[jax.Array], jax.Array], example: Any, *, name: str = "network") -> onnx.ModelProto:
    """The graph of `export_with_containers`."""
    return export_with_containers(function, example, name=name).model


def export_with_containers(
    function: Callable[[jax.Array], jax.Array], example: Any, *, name: str = "network", operands: Operands = EXACT
) -> Exported:
    """Exports `function` as a graph with one input, `"input"`, and one output, `"output"`.

    Nodes of layers are named by their paths, such as `"stage0/conv"`.

    Args:
      function: `(array) → array`; arrays that it closes over become constants.
      example: array or `ShapeDtypeStruct`; the graph takes inputs of exactly this shape. The first dimension may be a
        symbol of `jax.export`: any batch.
      name: name of the graph.
      operands: how it holds the operands of products.

    Raises:
      ExportError: an operation cannot be exported.
    """
    closed = jax.make_jaxpr(function)(example)
    [output] = closed.out_avals
    graph = GraphBuilder(example.shape[0] if example.shape else None, operands)
    x = Tensor("input", tuple(range(len(example.shape))))
    [result] = _run(graph, closed.jaxpr, [np.asarray(c) for c in closed.consts], [x], "")
    result = graph.straightened(result)
    if not isinstance(result, Tensor) or result == x:
        raise ExportError("what the function gives is its input or a constant: there is nothing to export")
    graph.rename(result.name, "output")

    def shape(dimensions: Sequence[Any]) -> list[int | str]:
        return [BATCH if is_symbolic_dim(size) else size for size in dimensions]

    element = helper.np_dtype_to_tensor_dtype
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            name,
            [helper.make_tensor_value_info("input", element(np.dtype(example.dtype)), shape(example.shape))],
            [helper.make_tensor_value_info("output", element(np.dtype(output.dtype)), shape(output.shape))],
            graph.constants,
        ),
        opset_imports=[
            helper.make_opsetid("", OPSET),
            *(helper.make_opsetid(domain, 1) for domain in sorted({node.domain for node in graph.nodes} - {""})),
        ],
        ir_version=IR_VERSION,
        producer_name="fliqs-jax",
    )
    onnx.checker.check_model(model)
    return Exported(model, dict(graph.containers))


def _run(graph: GraphBuilder, jaxpr: Any, consts: Sequence[Value], inputs: Sequence[Value], scope: str) -> list[Value]:
    """Adds the equations of a jaxpr to the graph; returns the outputs of the jaxpr."""
    values: dict[Any, Value] = dict(zip(jaxpr.constvars, consts, strict=True))
    values.update(zip(jaxpr.invars, inputs, strict=True))

    def read(variable: Any) -> Value:
        return np.asarray(variable.val) if isinstance(variable, jax.extend.core.Literal) else values[variable]

    for equation in jaxpr.eqns:
        arguments = [read(variable) for variable in equation.invars]
        inner_scope = "/".join(filter(None, (scope, str(equation.source_info.name_stack))))
        results = _equation(graph, equation, arguments, inner_scope)
        values.update(zip(equation.outvars, results, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def _equation(graph: GraphBuilder, equation: Any, arguments: Arguments, scope: str) -> Sequence[Value]:
    if equation.primitive.name == "platform_index":
        # A graph has no code for specific platforms; the last branch is the default one.
        return [np.asarray(len(equation.params["platforms"]) - 1, np.int32)]
    if equation.primitive.name == "cond" and isinstance(arguments[0], np.ndarray):
        branch = equation.params["branches"][int(arguments[0])]
        return _run(graph, branch.jaxpr, [np.asarray(c) for c in branch.consts], arguments[1:], scope)
    sizes = [size for variable in equation.outvars for size in variable.aval.shape]
    depends = equation.primitive.name == "dim_as_value" or any(map(is_symbolic_dim, sizes))
    if not depends and not any(isinstance(argument, Tensor) for argument in arguments):
        results = equation.primitive.bind(*arguments, **equation.params)
        return [np.asarray(r) for r in (results if equation.primitive.multiple_results else [results])]
    inner = list(jax.extend.core.jaxprs_in_params(equation.params))
    primitive = equation.primitive.name
    if primitive in ("jit", "custom_jvp_call", "custom_vjp_call", "remat2", "checkpoint"):
        body = equation.params["call_jaxpr"] if "call_jaxpr" in equation.params else equation.params["jaxpr"]
        if equation.params.get("name") in ROUNDING:
            return [graph.operands.rounded(graph, arguments, scope)]
        consts = [np.asarray(c) for c in getattr(body, "consts", ())]
        return _run(graph, inner[0], consts, arguments, scope)
    if primitive not in OPERATIONS:
        raise ExportError(f"{scope or 'the function'}: {primitive} has no counterpart in ONNX here")
    result = OPERATIONS[primitive](graph, equation, arguments, scope)
    return result if equation.primitive.multiple_results else [result]
