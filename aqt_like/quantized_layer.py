"""Quantised layers: codes are multiplied, and the result is scaled.

A layer computes `y = s_x · s_w · (codes of x ⋆ codes of w) + bias`. The codes of all searched formats have at most 8
significant bits: they are exact in bfloat16 and in TF32, in which TPUs and GPUs multiply, and so the products are those
of integer hardware; sums of integer codes are exact in float32 as long as they stay below 2^24. Dequantised values have
24 significant bits, which these devices would round once more.

Codes exist only between a linen layer's `promote_dtype` and its result: what else reads a kernel sees float weights,
and a kernel that a wrapper normalises (`nn.WeightNorm`, `nn.SpectralNorm`) is quantised after that.
"""

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jax import lax

from aqt_like import calibration, gradients, granularity, numerics
from aqt_like.format_probe import FormatProbe, probe_input, probe_kernel
from aqt_like.formats import FormatTable
from aqt_like.kernel_axes import KernelAxes, kernel_axes
from aqt_like.layer_calls import Product, split_repetition


class LayerFormats(NamedTuple):
    """Formats of one layer.

    Attributes:
      weights: format row of the weights; of a `Product`, that of the second factor.
      inputs: format row of the input.
      input_clip: float32 scalar, clip threshold of the input.
      probe: other formats, whose effect on the loss is to be measured in the backward pass.
      input_share: float32 scalar, the share of the input's channels that an elastic network has; the others are zeros,
        which do not count in profiles. None for all.
    """

    weights: FormatTable
    inputs: FormatTable
    input_clip: jax.Array
    probe: FormatProbe | None = None
    input_share: jax.Array | None = None


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("weights", "inputs", "input_scale"), meta_fields=("kernel",)
)
@dataclasses.dataclass(frozen=True)
class FrozenLayer:
    """What one layer of a frozen network multiplies; it takes the place of `LayerFormats`.

    Attributes:
      weights: the codes of its kernel, with output channels last; of a `Product`, the format row of the second factor.
      inputs: format row of the codes of the input (`gradients.code_grid`).
      input_scale: float32 scalar.
      kernel: shape of the kernel and its axes of output channels (`KernelAxes`), static; None of a `Product`.
    """

    weights: gradients.Codes | FormatTable
    inputs: FormatTable
    input_scale: jax.Array
    kernel: tuple[tuple[int, ...], tuple[int, ...]] | None


def kernel_clip(
    granularity_name: str,
    statistic: calibration.Statistic = calibration.root_mean_square,
    scale_rule: granularity.ScaleRule = granularity.float32_scale,
) -> granularity.Clip:
    """The clip threshold of kernels, a multiple of their root mean square, at a granularity by name.

    Raises:
      ValueError: an unknown granularity.
    """
    return granularity.Clipping(statistic, granularity.kernel_granularity(granularity_name), scale_rule)


def weight_clips(
    granularity_of: Mapping[str, str],
    statistic: calibration.Statistic = calibration.root_mean_square,
    scale_rule: granularity.ScaleRule = granularity.float32_scale,
) -> dict[str, granularity.Clip]:
    """`Quantizer.weight_clip_of` for granularities by path; repetitions of a layer in a loop have the same."""
    return {
        split_repetition(path)[0]: kernel_clip(name, statistic, scale_rule) for path, name in granularity_of.items()
    }


class Quantizer(NamedTuple):
    """The functions that quantise tensors.

    Clip thresholds of kernels are functions of the kernel with its output channels in the last axis and the contracted
    axes before (`KernelAxes.to_channels_last`), whatever the layer.

    Attributes:
      estimator: quantisation and its gradient; or a function `(x, row, clip) -> values` of dequantised values, which
        are multiplied as they are.
      weight_clip: clip threshold of a kernel, from the kernel.
      input_clip: clip threshold of an input, from the input; if None, `LayerFormats.input_clip` is used.
      input_scale_rule: adapts the thresholds that `LayerFormats.input_clip` gets from profiles.
      factor_clip: clip threshold of the second factor of a product, from that factor.
      weight_clip_of: replaces `weight_clip` for single layers, by path.
      operands: type in which codes are multiplied, float32 or bfloat16; sums are float32. Dequantised values are
        multiplied in float32. Formats of more than 8 significant bits need float32, since bfloat16 rounds them.
      precision: precision of the float32 products of the model on TPUs and GPUs, a name of
        `jax.default_matmul_precision`.
      activations: type in which activations are stored between layers, float32 or bfloat16 (`stored_activations`).
    """

    estimator: gradients.Estimator | Callable[..., jax.Array] = gradients.straight_through
    weight_clip: granularity.Clip = kernel_clip("per_channel")
    input_clip: granularity.Clip | None = None
    input_scale_rule: granularity.ScaleRule = granularity.float32_scale
    factor_clip: granularity.Clip = granularity.Clipping(calibration.root_mean_square)
    weight_clip_of: Mapping[str, granularity.Clip] = MappingProxyType({})
    operands: Any = jnp.float32
    precision: str = "default"
    activations: Any = jnp.float32

    def weight_clip_at(self, path: str) -> granularity.Clip:
        """The clip threshold of the kernel of the layer at `path`."""
        return self.weight_clip_of.get(path, self.weight_clip)


DEFAULT_QUANTIZER = Quantizer()


class Operand(NamedTuple):
    """A quantised operand of a product: `values · scale`.

    Attributes:
      values: float32, any shape.
      scale: float32, a scalar or one value per output channel.
      is_codes: whether `values` are codes; dequantised otherwise, with the scale 1.
    """

    values: jax.Array
    scale: jax.Array
    is_codes: bool = True

    def dequantized(self) -> "Operand":
        """The same with values that need no scale."""
        return Operand(self.values * self.scale, jnp.ones(()), is_codes=False)


def _operand(x: jax.Array, row: FormatTable, clip: jax.Array, quantizer: Quantizer, *, channels: bool) -> Operand:
    """The codes of `x`, whose scale is a scalar, or one per index of the last axis if it has output `channels`.

    Scales along other axes lie inside the contraction: there values are dequantised. So they are if the estimator is a
    plain function, which has no codes.
    """
    x, clip = x.astype(jnp.float32), jnp.asarray(clip)
    if not isinstance(quantizer.estimator, gradients.Estimator):
        return Operand(quantizer.estimator(x, row, clip), jnp.ones(()), is_codes=False)
    return _operand_of(quantizer.estimator.codes(x, row, clip), channels=channels)


def _operand_of(codes: gradients.Codes, *, channels: bool) -> Operand:
    values, scale = codes
    if scale.size == 1:
        return Operand(values, scale.reshape(()))
    if channels and scale.shape == (1,) * (values.ndim - 1) + values.shape[-1:]:
        return Operand(values, scale)
    return Operand(values, scale).dequantized()


def frozen_layer(
    formats: LayerFormats, kernel: jax.Array, axes: KernelAxes | None, clip: granularity.Clip
) -> FrozenLayer:
    """The codes of a layer.

    Args:
      formats: its formats.
      kernel: its kernel, as it is multiplied, with output channels last; of a `Product`, anything.
      axes: the axes of the kernel; None of a `Product`.
      clip: clip threshold of the kernel.
    """
    row, scale, _ = gradients.code_grid(formats.inputs, formats.input_clip)
    if axes is None:
        return FrozenLayer(formats.weights, row, scale, None)
    kernel = kernel.astype(jnp.float32)
    codes = gradients.straight_through.codes(kernel, formats.weights, jnp.asarray(clip(kernel, formats.weights)))
    return FrozenLayer(codes, row, scale, (axes.shape, axes.outputs))


def quantized_call(
    call: Callable[..., jax.Array],
    layer: nn.Module,
    formats: LayerFormats | FrozenLayer,
    quantizer: Quantizer,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> jax.Array:
    """The result of a layer call with weights and input quantised.

    Args:
      call: the layer's bound `__call__`.
      layer: the layer, bound to its variables.
      formats: its formats.
      quantizer: gradients, thresholds and operand type.
      args, kwargs: the arguments of the call.

    Raises:
      ValueError: an einsum that reads a diagonal of its kernel; complex values; formats of several repetitions for a
        layer that no loop repeats; or codes of another shape than the kernel's.
    """
    path = "/".join(layer.path)
    if repetitions := jnp.shape(formats.inputs.largest):
        raise ValueError(f"{path}: formats with {repetitions} repetitions of a layer that no loop repeats")
    if isinstance(layer, Product):
        return _quantized_product(formats, quantizer, *args, **kwargs)
    # An operation with a state of its own, as in Flax's FP8, gets values: the state is not that of codes.
    has_state = getattr(layer, "dot_general_cls", None) or getattr(layer, "conv_general_dilated_cls", None)
    float32_sums = _float32_sums(layer)
    equation = einsum_equation(layer, args, kwargs)
    operands: list[Any] = []

    def to_codes(inputs: jax.Array, kernel: jax.Array, bias: jax.Array | None, *, dtype: Any) -> tuple[Any, Any, Any]:
        """Takes the place of the layer's `promote_dtype`: codes for the product, zeros for the bias."""
        promoted = own_promote_dtype(inputs, kernel, bias, dtype=dtype)
        result_type = promoted[0].dtype
        if own_promote_dtype is not promote_dtype:  # The model's own may change values.
            inputs, kernel, bias = promoted
        if jnp.iscomplexobj(inputs) or jnp.iscomplexobj(kernel):
            raise ValueError(f"{path} computes with complex values: leave the layer in float")
        axes = kernel_axes(layer, kernel.shape, inputs.shape, equation)
        x = _input_operand(inputs, formats, quantizer)
        w = _kernel_operand(kernel, axes, formats, quantizer, path)
        if has_state:
            x, w = x.dequantized(), w.dequantized()
        operands[:] = x, w, bias, axes, result_type
        operand_type = quantizer.operands if float32_sums and x.is_codes and w.is_codes else jnp.float32
        no_bias = None if bias is None else jnp.zeros(bias.shape, jnp.float32)
        return x.values.astype(operand_type), axes.from_channels_last(w.values).astype(operand_type), no_bias

    own_promote_dtype = layer.promote_dtype
    with _replaced(layer, {"promote_dtype": to_codes, **float32_sums}):
        y = call(*args, **kwargs)
    x, w, bias, axes, result_type = operands
    y = y * x.scale * axes.on_output(w.scale, y.ndim)  # in turn, since the product of two scales may underflow
    if bias is not None:
        y = y + axes.on_output(bias.astype(jnp.float32), y.ndim)
    return y.astype(getattr(layer, "preferred_element_type", None) or result_type)


def einsum_equation(layer: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
    """The equation that an `nn.Einsum` is called with, if any."""
    if not isinstance(layer, nn.Einsum):
        return None
    return args[1] if len(args) > 1 else kwargs.get("einsum_str")


def _quantized_product(
    formats: LayerFormats | FrozenLayer, quantizer: Quantizer, equation: str, left: jax.Array, right: jax.Array
) -> jax.Array:
    row = formats.weights
    if not isinstance(row, FormatTable):
        raise ValueError("codes of a kernel for a product of activations: the network is that of another model")
    x = _input_operand(left, formats, quantizer)
    w = _factor_operand(right, row, formats, quantizer)
    operand_type = quantizer.operands if x.is_codes and w.is_codes else jnp.float32
    factors = (factor.values.astype(operand_type) for factor in (x, w))
    y = jnp.einsum(equation, *factors, preferred_element_type=jnp.float32)
    return (y * x.scale * w.scale).astype(jnp.result_type(left, right))


def _factor_operand(
    right: jax.Array, row: FormatTable, formats: LayerFormats | FrozenLayer, quantizer: Quantizer
) -> Operand:
    right = right.astype(jnp.float32)
    w = _operand(right, row, quantizer.factor_clip(right, row), quantizer, channels=False)
    if probe := _probe_of(formats):
        # Of the other factor, which is an activation as well.
        own = dataclasses.replace(probe, inputs=probe.weights, of_inputs=probe.of_weights)
        clips = jax.vmap(functools.partial(quantizer.factor_clip, right))(probe.weights)
        w = w._replace(values=probe_input(w.values, w.scale, right, own, clips, quantizer.estimator))
    return w


def _probe_of(formats: LayerFormats | FrozenLayer) -> FormatProbe | None:
    return formats.probe if isinstance(formats, LayerFormats) else None


def _kernel_operand(
    kernel: jax.Array, axes: KernelAxes, formats: LayerFormats | FrozenLayer, quantizer: Quantizer, path: str
) -> Operand:
    """The kernel with output channels last, or the codes that stand for it."""
    if isinstance(formats, LayerFormats):
        channels_last = axes.to_channels_last(kernel).astype(jnp.float32)
        clip_of = quantizer.weight_clip_at(path)
        threshold = clip_of(channels_last, formats.weights)
        w = _operand(channels_last, formats.weights, threshold, quantizer, channels=True)
        if formats.probe is None:
            return w
        probed = probe_kernel(w.values, w.scale, channels_last, formats.probe, clip_of, quantizer.estimator)
        return w._replace(values=probed)
    if formats.kernel != (axes.shape, axes.outputs):
        raise ValueError(
            f"{path}: codes of a kernel of (shape, output axes) {formats.kernel}, for one of "
            f"{(axes.shape, axes.outputs)}: the network is that of another model"
        )
    assert isinstance(formats.weights, gradients.Codes)
    return _operand_of(formats.weights, channels=True)


def _input_operand(x: jax.Array, formats: LayerFormats | FrozenLayer, quantizer: Quantizer) -> Operand:
    if isinstance(formats, FrozenLayer):
        # Multiplied by the reciprocal, as compilers do with some divisors and in some programs.
        units = x.astype(jnp.float32) * (1 / formats.input_scale)
        return Operand(numerics.round_to_grid(units, formats.inputs), formats.input_scale)
    clip, own_clip = formats.input_clip, quantizer.input_clip
    if own_clip is not None:
        clip = own_clip(x.astype(jnp.float32), formats.inputs)
    operand = _operand(x, formats.inputs, clip, quantizer, channels=False)
    if (probe := formats.probe) is None:
        return operand
    clips = probe.input_clips
    if own_clip is not None:
        clips = jax.vmap(functools.partial(own_clip, x.astype(jnp.float32)))(probe.inputs)
    return operand._replace(values=probe_input(operand.values, operand.scale, x, probe, clips, quantizer.estimator))


def _float32_sums(layer: nn.Module) -> dict[str, Any]:
    """Fields of a layer under which its product has float32 results, whatever the type of its operands.

    There are none for `nn.ConvLocal` and for operations of a model's own that take no `preferred_element_type`: their
    operands have to be float32.
    """
    if isinstance(layer, nn.Einsum | nn.ConvTranspose):
        return {"preferred_element_type": jnp.float32}
    name = "conv_general_dilated" if isinstance(layer, nn.Conv) else "dot_general"
    if isinstance(layer, nn.ConvLocal) or getattr(layer, f"{name}_cls", None):
        return {}
    operation = getattr(layer, name) or getattr(lax, name)
    if not _takes(operation, "preferred_element_type"):
        return {}
    return {name: functools.partial(operation, preferred_element_type=jnp.float32)}


def _takes(function: Callable[..., Any], name: str) -> bool:
    """Whether a function takes an argument by keyword."""
    parameters = inspect.signature(function).parameters
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


@contextlib.contextmanager
def _replaced(layer: nn.Module, fields: Mapping[str, Any]) -> Iterator[None]:
    """Replaces fields of a bound layer, which are frozen to models, within the block."""
    own = {name: getattr(layer, name) for name in fields}
    for name, value in fields.items():
        object.__setattr__(layer, name, value)
    try:
        yield
    finally:
        for name, value in own.items():
            object.__setattr__(layer, name, value)


@contextlib.contextmanager
def kernel_seen(layer: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[list[Any]]:
    """Within this block, a call of the layer puts its kernel, as it is multiplied, and its axes into the list.

    A product puts nothing.
    """
    seen: list[Any] = []
    if isinstance(layer, Product):
        yield seen
        return
    own = layer.promote_dtype

    def promote(inputs: jax.Array, kernel: jax.Array, bias: jax.Array | None, *, dtype: Any) -> tuple[Any, ...]:
        promoted = own(inputs, kernel, bias, dtype=dtype)
        if own is not promote_dtype:  # The model's own may change values.
            inputs, kernel, _ = promoted
        seen[:] = kernel, kernel_axes(layer, kernel.shape, inputs.shape, einsum_equation(layer, args, kwargs))
        return promoted

    with _replaced(layer, {"promote_dtype": promote}):
        yield seen
