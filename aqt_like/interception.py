"""Quantisation of any linen model, from outside: the model is plain Flax and never edited.

Three variable collections say how each layer computes. All are plain data, keyed like the parameters by layer path:

* `"formats"`: `LayerFormats`, the format rows of a layer's weights and of its input; injected at each step.
* `"calibration"`: `LayerCalibration`, the profile of a layer's input; updated where the caller makes it mutable.
* `"params"`: the float weights, which keep being trained.

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
    """An einsum of two activations as a module, by which it can be found: `Product()("bqc,bkc->bqk", query, key)`.

    Flax's attention takes it: `qk_attn_weights_einsum_cls=lambda: Product(name="scores")`, and the other one alike.
    """

    @nn.compact
    def __call__(self, equation: str, left: jax.Array, right: jax.Array) -> jax.Array:
        """`jnp.einsum(equation, left, right)`."""
        return jnp.einsum(equation, left, right)


QUANTIZABLE = (nn.Conv, nn.ConvTranspose, nn.Dense, nn.DenseGeneral, nn.Einsum, Product)

PROFILED_EXAMPLES = 16


class LayerFormats(NamedTuple):
    """How one layer computes: `weights` is a format row; `inputs` too, with `input_clip` its clip threshold.

    The second factor of a `Product` takes the place of the weights.
    """

    weights: FormatTable
    inputs: FormatTable
    input_clip: jax.Array


class LayerCalibration(NamedTuple):
    """Profile of one layer's input. Scalars, or `[L]` when stacked over layers.

    Attributes:
      mean_square: float32, running average of the batch mean of x².
      smallest: float32, smallest input seen; an input that is never negative may use an unsigned format.
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
        """The profile after another batch `x`: an average of all batches at first, later an exponential one.

        About `PROFILED_EXAMPLES` of it are looked at, spread evenly, so that profiling costs nearly nothing. The result
        is not sensitive to how much is profiled (FLIQS, Table 10c).
        """
        return self._with(x[:: max(len(x) // PROFILED_EXAMPLES, 1)], calibration.MOMENTUM)

    def update_with_all(self, x: jax.Array) -> "LayerCalibration":
        """As `update`, looking at all values of `x`, in float32; batches count alike, however many there are."""
        return self._with(x.astype(jnp.float32), 1.0)

    def _with(self, x: jax.Array, momentum: float) -> "LayerCalibration":
        average = calibration.RunningAverage(self.mean_square, self.batches).update(jnp.mean(jnp.square(x)), momentum)
        return LayerCalibration(average.value, jnp.minimum(self.smallest, jnp.min(x)), average.batches)

    @property
    def root_mean_square(self) -> jax.Array:
        """What clip multiples are multiples of."""
        return jnp.sqrt(self.mean_square)

    @property
    def never_negative(self) -> jax.Array:
        """bool: whether an unsigned format loses nothing."""
        return (self.batches > 0) & (self.smallest >= 0)


def kernel_clip(granularity_name: str) -> granularity.Clip:
    """The usual threshold of kernels, multiples of the root mean square, at a granularity by name."""
    return granularity.Clipping(calibration.root_mean_square, granularity.kernel_granularity(granularity_name))


class Quantizer(NamedTuple):
    """How tensors are quantised, in functions.

    Attributes:
      estimator: the gradient.
      weight_clip: threshold of a kernel, from the kernel itself.
      input_clip: threshold of an input, from the input itself; where None, the one that was profiled.
      factor_clip: threshold of the second factor of a product, from itself.
      weight_clip_of: instead of `weight_clip`, for single layers, by path.
    """

    estimator: gradients.Estimator = gradients.straight_through
    weight_clip: granularity.Clip = kernel_clip("per_channel")
    input_clip: granularity.Clip | None = None
    factor_clip: granularity.Clip = granularity.Clipping(calibration.root_mean_square)
    weight_clip_of: Mapping[str, granularity.Clip] = MappingProxyType({})


DEFAULT_QUANTIZER = Quantizer()


def is_layer_call(context: nn.module.InterceptorContext) -> bool:
    """Whether an intercepted call is that of a layer that can be quantised."""
    return isinstance(context.module, QUANTIZABLE) and context.method_name == "__call__"


def apply_quantized(
    model: nn.Module,
    variables: dict[str, Any],
    *args: Any,
    mutable: Any = False,
    quantizer: Quantizer = DEFAULT_QUANTIZER,
    **kwargs: Any,
) -> Any:
    """`model.apply` with each layer's weights and input fake-quantised as `variables["formats"]` says.

    By default weights are clipped per output channel, inputs per tensor, with a straight-through gradient.

    Args:
      model: any linen module.
      variables: its variables, with `"formats"` and `"calibration"` collections that may lack layers or be absent.
      *args: passed to the model.
      mutable: as in `model.apply`; with `"calibration"` among them, the inputs of the layers in it are profiled.
      quantizer: gradient, granularity and scales.
      **kwargs: passed to the model.

    Returns:
      What `model.apply` returns.

    Raises:
      ValueError: variables without `"params"`; a layer that gets its input by keyword.
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
            seen: LayerCalibration = layer.get_variable("calibration", "input")
            layer.put_variable("calibration", "input", seen.update(x))
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
    """What stands before a layer's input among its arguments (a product's equation), and the input and the rest."""
    first = 1 if isinstance(layer, Product) else 0
    if len(call_args) <= first:
        raise ValueError(f"{'/'.join(layer.path)} gets its input by keyword: expected it by position")
    return call_args[:first], call_args[first:]


def _params(variables: Mapping[str, Any]) -> dict[str, Any]:
    if "params" not in variables:
        raise ValueError(f"no 'params' among the variables: expected what model.init returns, got {list(variables)}")
    return variables["params"]


def _flat(collection: dict[str, Any]) -> dict[tuple[str, ...], Any]:
    """A collection by paths; the NamedTuples of this module are leaves."""
    return traverse_util.flatten_dict(collection)


def layer_operands(
    model: nn.Module, variables: dict[str, Any], *args: Any, **kwargs: Any
) -> dict[str, tuple[jax.Array, ...]]:
    """The input of each layer, or both factors of a product, by path, when `model` is applied in float."""
    operands: dict[str, tuple[jax.Array, ...]] = {}

    def keep(call: Any, call_args: tuple, call_kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        if is_layer_call(context):
            layer = context.module
            operands["/".join(layer.path)] = _split(layer, call_args)[1]
        return call(*call_args, **call_kwargs)

    with nn.intercept_methods(keep):
        model.apply(variables, *args, **kwargs)
    return operands


def profile_inputs(
    model: nn.Module, variables: Mapping[str, Any], *args: Any, **kwargs: Any
) -> dict[str, LayerCalibration]:
    """The profile of each layer's input, by path in the order of the calls, when `model` is applied in float.

    All values count, in float32. A layer that is called several times has its calls profiled as so many batches, and of
    a product the first factor is profiled. The whole runs as one compiled program.

    Args:
      model: any linen module.
      variables: its variables; their `"formats"` and `"calibration"` are not looked at.
      *args: passed to the model.
      **kwargs: passed to `model.apply`, as in `train=False`. What the model changes in its variables is dropped.

    Returns:
      Scalar profiles. That of a layer in a lifted transform (`nn.scan`, `nn.vmap`) is the mean over its runs if the
      transform hands out the collection, as in `variable_axes={"params": 0, "calibration": 0}`; else it is empty.

    Raises:
      ValueError: variables without `"params"`; a layer that gets its input by keyword, or whose weights are elsewhere
        than at its path.
    """
    params = _flat(_params(variables))
    kept = {name: collection for name, collection in variables.items() if name not in ("formats", "calibration")}
    mutable = [*(name for name in kept if name != "params"), "calibration"]
    leaves, structure = jax.tree.flatten((args, kwargs))
    arrays = {i: leaf for i, leaf in enumerate(leaves) if isinstance(leaf, jax.Array | np.ndarray)}
    called: dict[tuple[str, ...], None] = {}  # An ordered set.

    def keep(call: Any, call_args: tuple, call_kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        if is_layer_call(context):
            layer = context.module
            x = _split(layer, call_args)[1][0]
            if not isinstance(layer, Product) and (*layer.path, "kernel") not in params:
                name = "/".join(layer.path)
                raise ValueError(f"{name}: expected its weights in params at {name}/kernel, and there are none")
            called[layer.path] = None
            if layer.is_mutable_collection("calibration"):
                seen: LayerCalibration = layer.get_variable("calibration", "input", LayerCalibration.empty())
                layer.put_variable("calibration", "input", seen.update_with_all(x))
        return call(*call_args, **call_kwargs)

    @jax.jit
    def profile(kept: dict[str, Any], arrays: dict[int, jax.Array]) -> Any:
        """What is no array, as in `train=False`, stays what it is."""
        args, kwargs = jax.tree.unflatten(structure, [arrays.get(i, leaf) for i, leaf in enumerate(leaves)])
        with nn.intercept_methods(keep):
            _, updated = model.apply(kept, *args, mutable=mutable, **kwargs)
        return updated.get("calibration", {})

    found = _flat(profile(kept, arrays))
    profiles: dict[str, LayerCalibration] = {}
    for path in called:
        seen = found.get((*path, "input"), LayerCalibration.empty())
        profiles["/".join(path)] = LayerCalibration(
            jnp.mean(seen.mean_square), jnp.min(seen.smallest), jnp.max(seen.batches)
        )
    return profiles


def by_layer(paths: Sequence[str], stacked: Any, leaf_name: str | None = None) -> dict[str, Any]:
    """A variable collection from a pytree of leaves `[L, …]`: one entry per path, nested at the slashes."""
    suffix = () if leaf_name is None else (leaf_name,)
    leaves, structure = jax.tree.flatten(stacked)
    return traverse_util.unflatten_dict(
        {
            (*path.split("/"), *suffix): jax.tree.unflatten(structure, [leaf[i] for leaf in leaves])
            for i, path in enumerate(paths)
        }
    )


def stacked_calibration(paths: Sequence[str], collection: dict[str, Any]) -> LayerCalibration:
    """The profiles of the layers at `paths`, stacked to leaves `[L]`."""
    flat = _flat(collection)
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *(flat[(*path.split("/"), "input")] for path in paths))


def empty_calibration(paths: Sequence[str]) -> dict[str, Any]:
    """The `"calibration"` collection before the first batch."""
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf] * len(paths)), LayerCalibration.empty())
    return by_layer(paths, stacked, "input")
