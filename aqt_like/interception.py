"""Interception: fake quantisation of the layers of any linen model, which stays plain Flax and is never edited.

Three variable collections determine how layers compute. All are plain data, keyed by layer path like the parameters:

* `"formats"`: `LayerFormats`, the formats of a layer's weights and input; injected at each step.
* `"calibration"`: `LayerCalibration`, the profile of a layer's input; updated if the caller makes it mutable.
* `"params"`: the float weights, which training updates.

Layers without a `"formats"` entry compute in float.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from aqt_like import calibration, gradients, granularity
from aqt_like.formats import FormatTable


class Product(nn.Module):
    """An einsum of two activations as a module with a path: `Product()("bqc,bkc->bqk", query, key)`.

    Flax's attention accepts it: `qk_attn_weights_einsum_cls=lambda: Product(name="scores")`, and likewise
    `attn_weights_value_einsum_cls`.
    """

    @nn.compact
    def __call__(self, equation: str, left: jax.Array, right: jax.Array) -> jax.Array:
        """Returns `jnp.einsum(equation, left, right)`."""
        return jnp.einsum(equation, left, right)


QUANTIZABLE = (nn.Conv, nn.ConvTranspose, nn.Dense, nn.DenseGeneral, nn.Einsum, Product)

PROFILED_EXAMPLES = 16


class LayerFormats(NamedTuple):
    """Formats of one layer.

    Attributes:
      weights: format row of the weights; of a `Product`, that of the second factor.
      inputs: format row of the input.
      input_clip: float32 scalar, clip threshold of the input.
    """

    weights: FormatTable
    inputs: FormatTable
    input_clip: jax.Array


class LayerCalibration(NamedTuple):
    """Profile of a layer's input: scalars, or `[L]` when stacked over layers.

    Attributes:
      mean_square: float32, running average of the batch mean of x².
      smallest: float32, smallest value in all batches; if not negative, the input can use an unsigned format.
      batches: int32, number of batches profiled.
    """

    mean_square: jax.Array
    smallest: jax.Array
    batches: jax.Array

    @classmethod
    def empty(cls) -> "LayerCalibration":
        """The profile before the first batch."""
        return cls(jnp.zeros(()), jnp.full((), jnp.inf, jnp.float32), jnp.zeros((), jnp.int32))

    def update(self, x: jax.Array) -> "LayerCalibration":
        """The profile after another batch `x`: a plain mean over batches at first, later an exponential moving average.

        Only about `PROFILED_EXAMPLES` examples, evenly spaced in the batch, are profiled, at almost no cost. Accuracy
        is not sensitive to the number of profiled batches (FLIQS, Figure 10c).
        """
        return self._updated(x[:: max(len(x) // PROFILED_EXAMPLES, 1)], calibration.MOMENTUM)

    def update_with_all(self, x: jax.Array) -> "LayerCalibration":
        """The profile after another batch `x`, from all its values, in float32; all batches have the same weight."""
        return self._updated(x.astype(jnp.float32), 1.0)

    def _updated(self, x: jax.Array, momentum: float) -> "LayerCalibration":
        average = calibration.RunningAverage(self.mean_square, self.batches).update(jnp.mean(jnp.square(x)), momentum)
        return LayerCalibration(average.value, jnp.minimum(self.smallest, jnp.min(x)), average.batches)

    @property
    def root_mean_square(self) -> jax.Array:
        """The root mean square of the input, the unit of clip multiples."""
        return jnp.sqrt(self.mean_square)

    @property
    def never_negative(self) -> jax.Array:
        """Whether the input was never negative, so that an unsigned format can hold it: bool."""
        return (self.batches > 0) & (self.smallest >= 0)


def kernel_clip(granularity_name: str) -> granularity.Clip:
    """The clip threshold of kernels, a multiple of their root mean square, at a granularity by name.

    Raises:
      ValueError: an unknown granularity.
    """
    return granularity.Clipping(calibration.root_mean_square, granularity.kernel_granularity(granularity_name))


class Quantizer(NamedTuple):
    """The functions that quantise tensors.

    Attributes:
      estimator: fake quantisation and its gradient.
      weight_clip: clip threshold of a kernel, from the kernel.
      input_clip: clip threshold of an input, from the input; if None, `LayerFormats.input_clip` is used.
      factor_clip: clip threshold of the second factor of a product, from that factor.
      weight_clip_of: replaces `weight_clip` for single layers, by path.
    """

    estimator: gradients.Estimator = gradients.straight_through
    weight_clip: granularity.Clip = kernel_clip("per_channel")
    input_clip: granularity.Clip | None = None
    factor_clip: granularity.Clip = granularity.Clipping(calibration.root_mean_square)
    weight_clip_of: Mapping[str, granularity.Clip] = MappingProxyType({})


DEFAULT_QUANTIZER = Quantizer()


def is_layer_call(context: nn.module.InterceptorContext) -> bool:
    """Whether an intercepted call runs a layer that can be quantised."""
    return isinstance(context.module, QUANTIZABLE) and context.method_name == "__call__"


def apply_quantized(
    model: nn.Module,
    variables: dict[str, Any],
    *args: Any,
    mutable: Any = False,
    quantizer: Quantizer = DEFAULT_QUANTIZER,
    **kwargs: Any,
) -> Any:
    """`model.apply` with the weights and input of each layer fake-quantised to `variables["formats"]`.

    By default weights are clipped per output channel and inputs per tensor, and gradients are straight-through.

    Args:
      model: any linen module.
      variables: its variables; `"formats"` and `"calibration"` may be absent, or lack layers.
      *args: passed to the model.
      mutable: as in `model.apply`; if it includes `"calibration"`, inputs of the layers in that collection are
        profiled.
      quantizer: gradient, granularity and scales.
      **kwargs: passed to the model.

    Returns:
      What `model.apply` returns.

    Raises:
      ValueError: `variables` lacks `"params"`, or a layer gets its input by keyword.
    """
    formats: dict[tuple[str, ...], LayerFormats] = _flat(variables.get("formats", {}))
    params: dict[tuple[str, ...], jax.Array] = _flat(_params(variables))
    for path, layer in formats.items():
        if (*path, "kernel") in params:  # Products have none.
            kernel = params[(*path, "kernel")]
            weight_clip = quantizer.weight_clip_of.get("/".join(path), quantizer.weight_clip)
            params[(*path, "kernel")] = quantizer.estimator(kernel, layer.weights, weight_clip(kernel, layer.weights))

    def quantize_input(call: Any, call_args: tuple, call_kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        if not is_layer_call(context):
            return call(*call_args, **call_kwargs)
        layer = context.module
        before, (x, *rest) = _split(layer, call_args)
        if layer.is_mutable_collection("calibration") and layer.has_variable("calibration", "input"):
            profile: LayerCalibration = layer.get_variable("calibration", "input")
            layer.put_variable("calibration", "input", profile.update(x))
        if layer.path in formats:
            weights, row, clip = formats[layer.path]
            x = quantizer.estimator(x, row, clip if quantizer.input_clip is None else quantizer.input_clip(x, row))
            if isinstance(layer, Product):
                rest = [quantizer.estimator(rest[0], weights, quantizer.factor_clip(rest[0], weights))]
        return call(*before, x, *rest, **call_kwargs)

    with nn.intercept_methods(quantize_input):
        return model.apply(
            {**variables, "params": traverse_util.unflatten_dict(params)}, *args, mutable=mutable, **kwargs
        )


def _split(layer: nn.Module, call_args: tuple) -> tuple[tuple, tuple]:
    """Splits a layer's arguments before its input: a product's equation or nothing, and the input and the rest."""
    first = 1 if isinstance(layer, Product) else 0
    if len(call_args) <= first:
        raise ValueError(f"{'/'.join(layer.path)} gets its input by keyword: expected it by position")
    return call_args[:first], call_args[first:]


def _params(variables: Mapping[str, Any]) -> dict[str, Any]:
    if "params" not in variables:
        raise ValueError(f"no 'params' among the variables: expected what model.init returns, got {list(variables)}")
    return variables["params"]


def _flat(collection: dict[str, Any]) -> dict[tuple[str, ...], Any]:
    """A collection as a flat dictionary by path; the NamedTuples of this module are leaves."""
    return traverse_util.flatten_dict(collection)


def layer_operands(
    model: nn.Module, variables: dict[str, Any], *args: Any, **kwargs: Any
) -> dict[str, tuple[jax.Array, ...]]:
    """The input of each layer, or both factors of a product, by path, from one float forward pass."""
    operands: dict[str, tuple[jax.Array, ...]] = {}

    def record(call: Any, call_args: tuple, call_kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        if is_layer_call(context):
            layer = context.module
            operands["/".join(layer.path)] = _split(layer, call_args)[1]
        return call(*call_args, **call_kwargs)

    with nn.intercept_methods(record):
        model.apply(variables, *args, **kwargs)
    return operands


def profile_inputs(
    model: nn.Module, variables: Mapping[str, Any], *args: Any, **kwargs: Any
) -> dict[str, LayerCalibration]:
    """The profile of each layer's input, by path in the order of calls, from one float forward pass.

    All values are profiled, in float32. Each call of a layer counts as a batch. Of a product, the first factor is
    profiled. The forward pass is jitted.

    Args:
      model: any linen module.
      variables: its variables; `"formats"` and `"calibration"` are ignored.
      *args: passed to the model.
      **kwargs: passed to `model.apply`, as in `train=False`; but all variables are mutable, whatever `mutable` is, and
        their updates are discarded.

    Returns:
      Profiles with scalar leaves. The profile of a layer in a lifted transform (`nn.scan`, `nn.vmap`) averages its runs
      if the transform maps the collection, as in `variable_axes={"params": 0, "calibration": 0}`; else it is empty.

    Raises:
      ValueError: `variables` lacks `"params"`, a layer gets its input by keyword, or its weights are not at its path.
    """
    params = _flat(_params(variables))
    kwargs.pop("mutable", None)
    float_variables = {
        name: collection for name, collection in variables.items() if name not in ("formats", "calibration")
    }
    mutable = [*(name for name in float_variables if name != "params"), "calibration"]
    leaves, structure = jax.tree.flatten((args, kwargs))
    arrays = {i: leaf for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array | np.ndarray)}
    layer_paths: dict[tuple[str, ...], None] = {}  # An ordered set.

    def record(call: Any, call_args: tuple, call_kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        if is_layer_call(context):
            layer = context.module
            x = _split(layer, call_args)[1][0]
            if not isinstance(layer, Product) and (*layer.path, "kernel") not in params:
                name = "/".join(layer.path)
                raise ValueError(f"{name}: expected its weights in params at {name}/kernel, and there are none")
            layer_paths[layer.path] = None
            if layer.is_mutable_collection("calibration"):
                layer_profile: LayerCalibration = layer.get_variable("calibration", "input", LayerCalibration.empty())
                layer.put_variable("calibration", "input", layer_profile.update_with_all(x))
        return call(*call_args, **call_kwargs)

    @jax.jit
    def profile(float_variables: dict[str, Any], arrays: dict[int, jax.Array]) -> Any:
        """The updated `"calibration"` collection; arguments that are no arrays, as in `train=False`, stay static."""
        args, kwargs = jax.tree.unflatten(structure, [arrays.get(i, leaf) for i, leaf in enumerate(leaves)])
        with nn.intercept_methods(record):
            _, updated = model.apply(float_variables, *args, mutable=mutable, **kwargs)
        return updated.get("calibration", {})

    collection = _flat(profile(float_variables, arrays))
    profiles: dict[str, LayerCalibration] = {}
    for path in layer_paths:
        layer_profile = collection.get((*path, "input"), LayerCalibration.empty())
        profiles["/".join(path)] = LayerCalibration(
            jnp.mean(layer_profile.mean_square), jnp.min(layer_profile.smallest), jnp.max(layer_profile.batches)
        )
    return profiles


def by_layer(paths: Sequence[str], stacked: Any, leaf_name: str | None = None) -> dict[str, Any]:
    """A variable collection with one entry per path, nested at slashes, from a pytree of leaves `[L, …]`."""
    suffix = () if leaf_name is None else (leaf_name,)
    leaves, structure = jax.tree.flatten(stacked)
    return traverse_util.unflatten_dict(
        {
            (*path.split("/"), *suffix): jax.tree.unflatten(structure, [leaf[i] for leaf in leaves])
            for i, path in enumerate(paths)
        }
    )


def stacked_calibration(paths: Sequence[str], collection: dict[str, Any]) -> LayerCalibration:
    """The profiles of the layers at `paths` in a `"calibration"` collection, stacked to leaves `[L]`."""
    flat = _flat(collection)
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *(flat[(*path.split("/"), "input")] for path in paths))


def empty_calibration(paths: Sequence[str]) -> dict[str, Any]:
    """The `"calibration"` collection before the first batch."""
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf] * len(paths)), LayerCalibration.empty())
    return by_layer(paths, stacked, "input")
