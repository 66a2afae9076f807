"""What a network computes: its layers and their sizes, read off the model without spending a FLOP."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from aqt_like.layers import is_layer_call


@dataclasses.dataclass(frozen=True)
class LayerSpec:
    """One layer that can be quantised, at batch size 1.

    Attributes:
      path: names of the modules down to it, joined by slashes, as in the parameters.
      kind: `"conv"` or `"dense"`.
      in_channels, out_channels: sizes of the last axis of input and output.
      input_size, output_size: spatial sizes; empty for dense layers on vectors.
      kernel, stride: spatial; empty for dense layers.
      groups: number of convolution groups.
      macs: multiply-accumulates for one example.
      weights: number of kernel entries (without bias).
    """

    path: str
    kind: str
    in_channels: int
    out_channels: int
    input_size: tuple[int, ...]
    output_size: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    groups: int
    macs: int
    weights: int


Workload = tuple[LayerSpec, ...]


def trace(model: nn.Module, input_shape: Sequence[int], **kwargs: Any) -> Workload:
    """The layers of `model`, in the order in which they run, for one example of shape `input_shape` (no batch axis).

    Args:
      model: any linen module called as `model(x, **kwargs)`.
      input_shape: shape of one example.
      **kwargs: passed to the model.

    Raises:
      ValueError: the model has no layer that can be quantised.
    """
    layers: dict[str, LayerSpec] = {}

    def record(call: Any, args: tuple, call_kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        y = call(*args, **call_kwargs)
        if is_layer_call(context):
            spec = _spec(context.module, args[0].shape, y.shape)
            known = layers.get(spec.path)  # A layer that runs twice has its weights once and its MACs twice.
            layers[spec.path] = spec if known is None else dataclasses.replace(known, macs=known.macs + spec.macs)
        return y

    def run(x: jax.Array) -> Any:
        with nn.intercept_methods(record):
            return model.init(jax.random.key(0), x, **kwargs)

    jax.eval_shape(run, jax.ShapeDtypeStruct((1, *input_shape), jnp.float32))
    if not layers:
        raise ValueError(f"{type(model).__name__} has no layer of a kind that can be quantised")
    return tuple(layers.values())


def _spec(layer: nn.Module, input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> LayerSpec:
    in_channels, out_channels = input_shape[-1], output_shape[-1]
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    groups = 1
    if isinstance(layer, nn.Conv):
        kernel = _per_axis(layer.kernel_size, 1)
        stride = _per_axis(layer.strides or 1, len(kernel))
        groups = layer.feature_group_count
    weights = math.prod(kernel) * (in_channels // groups) * out_channels
    return LayerSpec(
        path="/".join(layer.path),
        kind="conv" if kernel else "dense",
        in_channels=in_channels,
        out_channels=out_channels,
        input_size=tuple(input_shape[1:-1]),
        output_size=tuple(output_shape[1:-1]),
        kernel=kernel,
        stride=stride,
        groups=groups,
        macs=weights * math.prod(output_shape[1:-1]),
        weights=weights,
    )


def _per_axis(size: int | Sequence[int], axes: int) -> tuple[int, ...]:
    return (size,) * axes if isinstance(size, int) else tuple(size)
