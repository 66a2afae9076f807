"""Freezing: one program makes all codes and scales of a quantised network, once.

Weights that straight-through training leaves on a rounding threshold have one code in one program and its neighbour in
another; nothing quantises a frozen network again.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import empty_node
from jax.interpreters import partial_eval

from aqt_like import gradients, interception, packing
from aqt_like.formats import Format, FormatTable, parse_format, parse_layer_format
from aqt_like.frozen_network import (
    Factor,
    FreezeError,
    FrozenNetwork,
    Kernel,
    Layer,
    flat_variables,
    format_row,
    nested_variables,
)
from aqt_like.granularity import Blocks
from aqt_like.layer_calls import Model, entry_of, split_repetition
from aqt_like.lifting import FORMATS
from aqt_like.quantized_layer import DEFAULT_QUANTIZER, FrozenLayer, frozen_layer
from aqt_like.quantized_model import QuantizedModel

_ARRAYS = (np.ndarray, np.generic, jax.Array, jax.ShapeDtypeStruct, float, int)


@functools.cache
def _exponent(fmt: Format) -> int:
    """The power of two by which codes of a format are multiplied before they are (`gradients.code_grid`)."""
    grid, _, _ = gradients.code_grid(format_row(fmt), jnp.ones(()))
    return int(grid.smallest_exponent) - fmt.smallest_exponent


def freeze(
    network: QuantizedModel,
    variables: Mapping[str, Any],
    *args: Any,
    other_modes: Sequence[Mapping[str, Any]] = (),
    **kwargs: Any,
) -> FrozenNetwork:
    """Freezes a quantised model: one jitted program makes all codes and scales.

    Args:
      network: the model and the formats of its layers.
      variables: its variables, with float weights.
      *args: arguments of the model; of arrays, only shapes and types matter.
      other_modes: further keyword arguments under which the network is going to run: kernels that something else reads
        there are kept, too.
      **kwargs: passed to `model.apply`, as in `train=False`.

    Raises:
      FreezeError: the network is frozen already; the quantiser clips inputs or factors by functions of their own, or
        has an estimator without codes; a layer did not run, has no parameter `kernel`, or multiplies one that depends
        on the input or differs between its calls; a weight is NaN; or a variable is no array.
    """
    variables, traced, arrays = _trace(network, variables, args, kwargs)
    made = jax.device_get(traced.lower().compile()(variables, network.collection, arrays))
    if differing := [path for path, (_, alike) in made.items() if not alike]:
        raise FreezeError(f"{', '.join(differing)}: the calls of the layer multiply different kernels")
    layers = {
        path: _frozen(path, name, made[path][0], jax.device_get(entry_of(network.collection, path)), network)
        for path, name in network.formats.items()
    }
    activations = jnp.dtype(network.quantizer.activations).name
    others = jax.tree.map(np.asarray, jax.device_get(variables))
    whole = FrozenNetwork(layers, others, {}, activations=activations)
    modes = (kwargs, *({**kwargs, **mode} for mode in other_modes))
    return _without_unread_kernels(whole, network.model, args, modes)


def check_freezable(network: QuantizedModel, variables: Mapping[str, Any], *args: Any, **kwargs: Any) -> None:
    """Raises what `freeze` would, but for what only values show: a NaN, and kernels that differ between calls.

    Nothing is compiled: arrays among the variables and formats may be `jax.ShapeDtypeStruct`s.
    """
    _trace(network, variables, args, kwargs)


def _trace(
    network: QuantizedModel, variables: Mapping[str, Any], args: tuple, kwargs: dict[str, Any]
) -> tuple[dict[str, Any], jax.stages.Traced, dict[int, Any]]:
    """The variables that are frozen, and the program that makes codes, with its last arguments.

    Its result has, by path, the frozen layer and whether all its calls multiply the same kernel.
    """
    _check_quantizer(network)
    variables = {name: x for name, x in nn.meta.unbox(dict(variables)).items() if name not in (FORMATS, "calibration")}
    for name, leaf in flat_variables(variables).items():
        if leaf is not empty_node and not isinstance(leaf, _ARRAYS):
            raise FreezeError(f"{name} is a {type(leaf).__name__}: expected variables that are arrays")
        if jnp.issubdtype(dtype := getattr(leaf, "dtype", float), jax.dtypes.extended):
            raise FreezeError(f"{name} is of type {dtype}, which no file can hold: expected numbers")
    arrays, with_arrays = interception.split_arguments(args, kwargs)
    names, quantizer = flat_variables(variables).keys(), network.quantizer

    def codes(variables: Any, collection: Any, arrays: Any) -> dict[str, tuple[FrozenLayer, jax.Array]]:
        args, kwargs = with_arrays(arrays)
        operands = interception.layer_operands(network.model, variables, *args, **kwargs)
        made = {}
        for path in network.formats:
            if path not in operands:
                raise FreezeError(f"{path} does not run under these arguments: expected those of `quantize_model`")
            found, clip = operands[path], quantizer.weight_clip_at(split_repetition(path)[0])
            made[path] = frozen_layer(entry_of(collection, path), found.weights, found.axes, clip), found.alike
            if found.axes is not None and _kernel_name(path) not in names:
                raise FreezeError(f"{path} has no parameter 'kernel' of its own, but multiplies one: leave it in float")
        return made

    traced = jax.jit(codes).trace(variables, network.collection, arrays)
    _check_inputs_unread(traced, len(arrays), tuple(network.formats))
    return variables, traced, arrays


def _kernel_name(path: str) -> str:
    """The path of a layer's kernel among the variables."""
    return f"params/{split_repetition(path)[0]}/kernel"


def _check_quantizer(network: QuantizedModel) -> None:
    """Raises FreezeError for a network whose thresholds or estimator cannot be frozen."""
    quantizer = network.quantizer
    entries = jax.tree.leaves(network.collection, is_leaf=lambda entry: isinstance(entry, FrozenLayer))
    if any(isinstance(entry, FrozenLayer) for entry in entries):
        raise FreezeError("the network is frozen already")
    if quantizer.input_clip is not None or quantizer.factor_clip != DEFAULT_QUANTIZER.factor_clip:
        raise FreezeError("a quantiser with input_clip or factor_clip: thresholds that are functions cannot be frozen")
    if not isinstance(quantizer.estimator, gradients.Estimator):
        raise FreezeError("a quantiser whose estimator is a plain function: it has no codes")


def _check_inputs_unread(traced: jax.stages.Traced, inputs: int, paths: tuple[str, ...]) -> None:
    """Raises FreezeError if codes depend on the last `inputs` arguments of the program that makes them."""
    jaxpr = traced.jaxpr.jaxpr

    def depends(outputs: list[bool]) -> bool:
        _, is_read = partial_eval.dce_jaxpr(jaxpr, outputs)
        return any(is_read[len(is_read) - inputs :])

    if not depends([True] * len(jaxpr.outvars)):
        return
    made = {path: jax.tree.map(lambda _: False, out) for path, out in traced.out_info.items()}
    for path in paths:
        chosen = made | {path: jax.tree.map(lambda _: True, made[path])}
        if depends(jax.tree.leaves(chosen)):
            raise FreezeError(f"{path}: its kernel depends on the input of the model: leave it in float")


def _frozen(path: str, name: str, made: FrozenLayer, rows: interception.LayerFormats, network: QuantizedModel) -> Layer:
    """A layer on the host, from what the program made."""
    fmt = parse_layer_format(name)
    input_format = _named(rows.inputs, (fmt.inputs, fmt.inputs.unsigned_twin, parse_format("fp32")), path)
    weight_format = _named(rows.weights, (fmt.weights, parse_format("fp32")), path)
    if made.kernel is None:
        weights: Kernel | Factor = Factor(weight_format.name, float(rows.weights.clip_multiple))
    else:
        assert isinstance(made.weights, gradients.Codes)
        values, scale = map(np.asarray, made.weights)
        blocks = getattr(network.quantizer.weight_clip_at(split_repetition(path)[0]), "granularity", None)
        if isinstance(blocks, Blocks):
            scale = np.asarray(blocks.gather(jnp.asarray(scale)))
        else:
            blocks = None
        exponent = _exponent(weight_format)
        try:
            packed = packing.pack_values(values, scale, weight_format.name, blocks=blocks, exponent=exponent)
        except ValueError as error:
            raise FreezeError(f"{path}: {error}") from error
        weights = Kernel(packed, *made.kernel)
    return Layer(name, weights, input_format.name, float(made.input_scale), _exponent(input_format))


def _named(row: FormatTable, candidates: tuple[Format, ...], path: str) -> Format:
    """The one of these formats that a row is of.

    Raises:
      FreezeError: it is of none.
    """
    for fmt in candidates:
        if (int(row.bits), int(row.mantissa_bits), float(row.lowest)) == (fmt.bits, fmt.mantissa_bits, fmt.lowest):
            return fmt
    raise FreezeError(f"{path}: its formats are none of {', '.join(fmt.name for fmt in candidates)}")


def _without_unread_kernels(
    whole: FrozenNetwork, model: Model, args: tuple, modes: Sequence[Mapping[str, Any]]
) -> FrozenNetwork:
    """The network without the kernels that nothing but their own layer reads in any mode: codes stand for them."""
    network, variables = whole.bind(model)
    flat = flat_variables(variables)
    names = [name for name, leaf in flat.items() if leaf is not empty_node]

    def outputs(*leaves: jax.Array) -> list[Any]:
        given = nested_variables(flat | dict(zip(names, leaves, strict=True)))
        return [jax.tree.leaves(network.apply(given, *args, **mode)) for mode in modes]

    jaxpr = jax.make_jaxpr(outputs)(*(flat[name] for name in names)).jaxpr
    _, is_read = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    unread = {name for name, read in zip(names, is_read, strict=True) if not read}
    kernels = dict.fromkeys(map(_kernel_name, whole.layers))
    omitted = {name: jax.ShapeDtypeStruct(flat[name].shape, flat[name].dtype) for name in kernels if name in unread}
    others = nested_variables(
        {name: leaf for name, leaf in flat_variables(whole.variables).items() if name not in omitted}
    )
    return dataclasses.replace(whole, variables=others, omitted=omitted)
