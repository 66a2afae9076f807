"""Interception: quantisation of the layers of any linen model, which stays plain Flax and is never edited.

Three variable collections determine how layers compute. All are plain data, keyed by layer path like the parameters:

* `"formats"`: `LayerFormats`, the formats of a layer's weights and input; injected at each step. In a frozen network
  `FrozenLayer`, with the codes of its weights.
* `"calibration"`: `LayerCalibration`, the profile of a layer's input; updated if the caller makes it mutable.
* `"params"`: the float weights, which training updates.

Layers without a `"formats"` entry compute in float. Entries of a layer that a loop repeats have the repetitions as
leading axes (`layer_calls`).
"""

import itertools
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from flax.core import tracers
from flax.core.scope import in_filter, subtract_filters, union_filters

from aqt_like.kernel_axes import KernelAxes
from aqt_like.layer_calls import (
    QUANTIZABLE,
    Model,
    Product,
    by_layer,
    by_layer_on_host,
    is_layer_call,
    layer_input,
    repetition_paths,
    second_factor,
)
from aqt_like.layer_profile import (
    InputStatistics,
    LayerCalibration,
    ProfileError,
    call_ratio,
    check_profile,
    empty_calibration,
    stacked_calibration,
)
from aqt_like.lifting import FORMATS, OBSERVED, loop_shapes, repeated_with_params
from aqt_like.quantized_layer import (
    DEFAULT_QUANTIZER,
    FrozenLayer,
    LayerFormats,
    Quantizer,
    kernel_clip,
    kernel_seen,
    quantized_call,
    weight_clips,
)
from aqt_like.stored_activations import Storage

__all__ = [
    "DEFAULT_QUANTIZER",
    "QUANTIZABLE",
    "FrozenLayer",
    "LayerCalibration",
    "LayerFormats",
    "Product",
    "ProfileError",
    "Quantizer",
    "apply_quantized",
    "by_layer",
    "by_layer_on_host",
    "check_profile",
    "empty_calibration",
    "is_layer_call",
    "kernel_clip",
    "layer_operands",
    "profile_inputs",
    "stacked_calibration",
    "weight_clips",
]

Path = tuple[str, ...]


class UnknownLayerError(ValueError):
    """Raised for a path at which the model ran no layer; the message lists those that ran."""


def apply_quantized(
    model: Model,
    variables: Mapping[str, Any],
    *args: Any,
    mutable: Any = False,
    quantizer: Quantizer = DEFAULT_QUANTIZER,
    profiling: jax.Array | bool = True,
    **kwargs: Any,
) -> Any:
    """`model.apply` with the weights and input of each layer quantised to `variables["formats"]`.

    By default weights are clipped per output channel and inputs per tensor, and gradients are straight-through.

    Args:
      model: any linen module.
      variables: its variables; `"formats"` and `"calibration"` may be absent, or lack layers.
      *args: passed to the model.
      mutable: as in `model.apply`; if it includes `"calibration"`, inputs of the layers in that collection are
        profiled.
      quantizer: gradient, granularity, scales, operand type, and type of stored activations.
      profiling: bool scalar, may be traced; if False, nothing is profiled, and profiles stay as they are.
      **kwargs: passed to the model.

    Returns:
      What `model.apply` returns.

    Raises:
      UnknownLayerError: `"formats"`, a mutable `"calibration"` or `Quantizer.weight_clip_of` has a path at which no
        layer ran, or only one in `nn.cond`, `nn.switch` or `nn.while_loop`.
      ValueError: `variables` lacks `"params"`; or a layer cannot be quantised (see `quantized_layer.quantized_call`).
    """
    _check_params(variables)
    formats: dict[Path, Any] = traverse_util.flatten_dict(variables.get(FORMATS, {}))
    profiled = in_filter(mutable, "calibration") and bool(variables.get("calibration"))
    calibration: dict[Path, Any] = traverse_util.flatten_dict(variables["calibration"]) if profiled else {}
    ran: dict[Path, None] = {}  # An ordered set.
    numbers = itertools.count()
    storage = Storage(quantizer.activations)

    def intercept(call: Any, call_args: tuple, call_kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        call_args, call_kwargs = storage.taken((call_args, call_kwargs), context)
        return storage.given(quantize(call, call_args, call_kwargs, context), context)

    def quantize(call: Any, call_args: tuple, call_kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        if not is_layer_call(context):
            return call(*call_args, **call_kwargs)
        layer = context.module
        ran[layer.path] = None
        if (*layer.path, "input") in calibration:
            share = getattr(formats.get(layer.path), "input_share", None)
            statistics = InputStatistics.of(layer_input(layer, call_args, call_kwargs), profiling, share)
            _observe(layer, next(numbers), statistics)
        if layer.path not in formats:
            return call(*call_args, **call_kwargs)
        if call is not context.orig_method:
            raise ValueError(
                f"{'/'.join(layer.path)}: the model itself intercepts the calls of this layer (nn.intercept_methods), "
                "and would get codes for values: leave the layer in float by a rule 'PATH: ignore'"
            )
        # A transform that passes on few collections by name leaves formats out; those outside of loops are known here.
        rows = layer.get_variable(FORMATS, "layer") if layer.has_variable(FORMATS, "layer") else formats[layer.path]
        return quantized_call(call, layer, rows, quantizer, call_args, call_kwargs)

    float_variables = {name: value for name, value in variables.items() if name not in (FORMATS, "calibration")}
    nested = {FORMATS: traverse_util.unflatten_dict({(*path, "layer"): rows for path, rows in formats.items()})}
    inner_mutable = mutable and subtract_filters(mutable, ("calibration", FORMATS) if profiled else FORMATS)
    if profiled:
        inner_mutable = union_filters(inner_mutable, OBSERVED)
    precision = jax.default_matmul_precision(quantizer.precision)
    with precision, repeated_with_params(), nn.intercept_methods(intercept):
        result = model.apply({**float_variables, **(nested if formats else {})}, *args, mutable=inner_mutable, **kwargs)
    expected = {tuple(path.split("/")): "weight_clip_of" for path in quantizer.weight_clip_of}
    expected |= dict.fromkeys(formats, FORMATS) | {path[:-1]: "calibration" for path in calibration}
    _check_paths(ran, expected)
    if mutable is False:
        return storage.result(result)
    y, updated = storage.result(result[0]), result[1]
    if not profiled:
        return y, updated
    calls = _by_call(updated.pop(OBSERVED))
    after = {(*path, "input"): calibration[(*path, "input")].after(statistics) for path, statistics in calls.items()}
    if profiling is not True:
        after = jax.tree.map(
            lambda new, old: jnp.where(profiling, new, old), after, {key: calibration[key] for key in after}
        )
    return y, {**updated, "calibration": traverse_util.unflatten_dict({**calibration, **after})}


def _check_params(variables: Mapping[str, Any]) -> None:
    if "params" not in variables:
        raise ValueError(f"no 'params' among the variables: expected what model.init returns, got {list(variables)}")


def _check_paths(ran: Iterable[Path], expected: Mapping[Path, str]) -> None:
    layers = set(ran)
    unknown = [path for path in expected if path not in layers]
    if unknown:
        named = ", ".join(f"{'/'.join(path)} ({expected[path]})" for path in unknown)
        raise UnknownLayerError(
            f"no layer that can be quantised ran at {named}; there ran {', '.join('/'.join(path) for path in ran)}. "
            "Layers in nn.cond, nn.switch and nn.while_loop stay in float: leave them out by a rule 'PATH: ignore'"
        )


def _observe(layer: nn.Module, number: int, value: Any) -> None:
    """Keeps a value of a layer call in the collection `OBSERVED`.

    The number is that of the call among all: loops do not see what was observed outside, and would overwrite it.

    Raises:
      ValueError: the layer is bound outside of a JAX transformation in which it is called.
    """
    assert layer.scope is not None
    if layer.scope.trace_level != tracers.current_trace():
        raise ValueError(
            f"{'/'.join(layer.path)} is called inside a JAX transformation (jax.vmap, lax.scan, a branch of nn.cond) "
            "but made outside of it: its input cannot be profiled. Use Flax's (nn.vmap, nn.scan), or give nn.cond the "
            "module that holds the layer"
        )
    layer.put_variable(OBSERVED, f"call{number}", value)


def _by_call(observed: Any) -> dict[Path, list[Any]]:
    """What was observed in each call of a layer, by path, in the order of calls."""
    flat: dict[Path, Any] = traverse_util.flatten_dict(observed)
    calls: dict[Path, list[Any]] = {}
    for path in sorted(flat, key=lambda path: int(path[-1].removeprefix("call"))):
        calls.setdefault(path[:-1], []).append(flat[path])
    return calls


def _observed(
    model: Model, variables: Mapping[str, Any], args: tuple, kwargs: dict[str, Any], observe: Callable[..., Any]
) -> dict[Path, list[Any]]:
    """What `observe(layer, call, args, kwargs) -> (result, value)` finds in each layer call, in the order of calls.

    One float forward pass; updates of collections are discarded.
    """
    order: dict[Path, None] = {}
    numbers = itertools.count()
    float_variables = {name: value for name, value in variables.items() if name not in (FORMATS, "calibration")}
    kwargs = {name: value for name, value in kwargs.items() if name != "mutable"}
    mutable = [*(name for name in float_variables if name != "params"), OBSERVED]

    def record(call: Any, call_args: tuple, call_kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        if not is_layer_call(context):
            return call(*call_args, **call_kwargs)
        result, value = observe(context.module, call, call_args, call_kwargs)
        if context.module.is_mutable_collection(OBSERVED):
            order[context.module.path] = None
            _observe(context.module, next(numbers), value)
        return result

    with repeated_with_params(), nn.intercept_methods(record):
        _, updated = model.apply(float_variables, *args, mutable=mutable, **kwargs)
    calls = _by_call(updated.get(OBSERVED, {}))
    return {path: calls[path] for path in order}


class LayerOperands(NamedTuple):
    """What one call of a layer multiplies.

    Attributes:
      input: its input; of a product, the first factor.
      weights: its kernel as it is multiplied, after masks and normalisation, with output channels last; of a product,
        the second factor.
      axes: the axes of the kernel; None for a product of two activations.
      alike: bool, whether all calls of the layer multiply the same kernel.
    """

    input: jax.Array
    weights: jax.Array
    axes: KernelAxes | None
    alike: jax.Array

    @property
    def is_product(self) -> bool:
        """Whether the layer is a product of two activations."""
        return self.axes is None


def layer_operands(model: Model, variables: Mapping[str, Any], *args: Any, **kwargs: Any) -> dict[str, LayerOperands]:
    """The operands of each layer, by path, from one float forward pass.

    Of a layer that is called several times, the first call counts. Inputs of runs in a loop that share parameters are
    stacked along a further last axis.
    """
    axes_of: dict[Path, KernelAxes | None] = {}

    def operands(layer: nn.Module, call: Any, call_args: tuple, call_kwargs: dict) -> tuple[Any, Any]:
        x = layer_input(layer, call_args, call_kwargs)
        if isinstance(layer, Product):
            axes_of[layer.path] = None
            return call(*call_args, **call_kwargs), (x, second_factor(call_args, call_kwargs), jnp.zeros((0,)))
        with kernel_seen(layer, call_args, call_kwargs) as seen:
            result = call(*call_args, **call_kwargs)
        kernel, axes = seen
        axes_of[layer.path] = axes
        return result, (x, axes.to_channels_last(kernel), jnp.zeros((0,)))

    found: dict[str, LayerOperands] = {}
    for path, calls in _observed(model, variables, args, kwargs, operands).items():
        first, second, boundary = calls[0]
        repetitions, _ = loop_shapes(boundary.shape)
        alike = jnp.ones((), bool)
        if axes_of[path] is not None:
            second, alike = _shared_kernel(calls)
        for name, index in zip(repetition_paths("/".join(path), repetitions), np.ndindex(*repetitions), strict=True):
            found[name] = LayerOperands(first[index], second[index], axes_of[path], alike)
    return found


def _shared_kernel(calls: Sequence[tuple[jax.Array, jax.Array, jax.Array]]) -> tuple[jax.Array, jax.Array]:
    """The kernel of the first call and the first run in a loop, and whether all others have the same."""
    whole = [(kernel, len(loop_shapes(boundary.shape)[1])) for _, kernel, boundary in calls]
    first = whole[0][0][(..., *[0] * whole[0][1])]
    alike = []
    for kernel, runs in whole:
        if kernel.shape[: kernel.ndim - runs] == first.shape:
            own = first.reshape(*first.shape, *[1] * runs)
            alike.append(jnp.all((kernel == own) | (jnp.isnan(kernel) & jnp.isnan(own))))
        else:
            alike.append(jnp.zeros((), bool))
    return first, jnp.all(jnp.stack(alike))


def _statistics(
    model: Model, variables: Mapping[str, Any], args: tuple, kwargs: dict[str, Any]
) -> dict[Path, list[InputStatistics]]:
    def statistics(layer: nn.Module, call: Any, call_args: tuple, call_kwargs: dict) -> tuple[Any, InputStatistics]:
        found = InputStatistics.of(layer_input(layer, call_args, call_kwargs))
        return call(*call_args, **call_kwargs), found

    return _observed(model, variables, args, kwargs, statistics)


def split_arguments(
    args: tuple, kwargs: Mapping[str, Any]
) -> tuple[dict[int, Any], Callable[[Mapping[int, Any]], tuple[tuple, dict[str, Any]]]]:
    """The arrays among arguments, which a program may take, and what makes `(args, kwargs)` of such arrays again.

    Arguments that are no arrays, as in `train=False`, stay as they are.
    """
    leaves, structure = jax.tree.flatten((args, dict(kwargs)))
    arrays = {i: leaf for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array | np.ndarray)}

    def with_arrays(arrays: Mapping[int, Any]) -> tuple[tuple, dict[str, Any]]:
        return jax.tree.unflatten(structure, [arrays.get(i, leaf) for i, leaf in enumerate(leaves)])

    return arrays, with_arrays


def profile_inputs(
    model: Model, variables: Mapping[str, Any], *args: Any, **kwargs: Any
) -> dict[str, LayerCalibration]:
    """The profile of each layer's input, by path in the order of calls, from one float forward pass.

    All values are profiled, in float32. The calls of a layer count alike. Of a product, the first factor is profiled.
    The forward pass is jitted.

    Args:
      model: any linen module.
      variables: its variables; `"formats"` and `"calibration"` are ignored.
      *args: passed to the model.
      **kwargs: passed to `model.apply`, as in `train=False`; but all variables are mutable, whatever `mutable` is, and
        their updates are discarded.

    Returns:
      Profiles with scalar leaves.

    Raises:
      ValueError: `variables` lacks `"params"`.
    """
    _check_params(variables)
    arrays, with_arrays = split_arguments(args, kwargs)
    paths: list[Path] = []

    @jax.jit
    def profile(variables: dict[str, Any], arrays: dict[int, jax.Array]) -> list[list[InputStatistics]]:
        """The statistics."""
        args, kwargs = with_arrays(arrays)
        found = _statistics(model, variables, args, kwargs)
        paths[:] = found
        return list(found.values())

    profiles: dict[str, LayerCalibration] = {}
    statistics = profile(dict(variables), arrays)
    for path, calls in zip(paths, statistics, strict=True):
        if (ratio := call_ratio(calls)) > 2:
            warnings.warn(
                f"{'/'.join(path)} runs {len(calls)} times, on inputs whose root mean squares differ by a factor of "
                f"{ratio:.1f}, but has one clip threshold",
                stacklevel=2,
            )
        stacked = LayerCalibration.empty().after(calls, momentum=1.0)
        shape = stacked.mean_square.shape
        for name, index in zip(repetition_paths("/".join(path), shape), np.ndindex(*shape), strict=True):
            profiles[name] = jax.tree.map(lambda leaf, index=index: leaf[index], stacked)
    return profiles
