"""Descriptions of layers: kind, sizes, MACs and runs of a layer, read off one call of it."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from aqt_like.kernel_axes import KernelAxes
from hwcost.contractions import Contraction, contractions


@dataclasses.dataclass(frozen=True)
class LayerSpec:
    """One layer that can be quantised, at batch size 1.

    Attributes:
      path: module names joined by slashes, as in the parameters.
      kind: `"conv"`, `"conv_transpose"`, `"conv_local"` (unshared weights), `"dense"`, or `"product"` for a product of
        two activations, which has no weights.
      in_channels, out_channels: channels of input and output. Of a dense layer over or to several axes (as attention
        heads), the product of their sizes. Of a product, the contracted size, and 1.
      input_size, output_size: the sizes of the other axes but the batch; empty for dense layers on vectors. Of a
        product, the number of values of both factors over the contracted size, and of the result.
      kernel, stride: spatial sizes; empty for dense layers.
      groups: number of convolution groups; of a dense layer, of kernels along axes that its input and output share.
      macs: multiply-accumulates (MACs) for one example in all runs, the MAC_l of FLIQS, Eq. 1.
      weights: number of kernel entries, without bias.
      dilation, input_dilation: spatial dilation of kernel and input, empty for 1 everywhere.
      runs: how often the layer runs for one example, with inputs of these sizes, the largest; runs with smaller ones
        count by their MACs, so that the number may be no whole one. A cost by sizes is that of one run.
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
    dilation: tuple[int, ...] = ()
    input_dilation: tuple[int, ...] = ()
    runs: float = 1

    @property
    def is_dilated(self) -> bool:
        """Whether kernel or input are dilated."""
        return any(size > 1 for size in (*self.dilation, *self.input_dilation))

    @classmethod
    def square_convolution(
        cls, path: str, ins: int, outs: int, *, size: int, output_size: int, kernel: int, stride: int, groups: int
    ) -> "LayerSpec":
        """The layer that convolves square images of `size` with a square kernel into images of `output_size`."""
        weights = kernel * kernel * (ins // groups) * outs
        return cls(
            path=path,
            kind="conv",
            in_channels=ins,
            out_channels=outs,
            input_size=(size, size),
            output_size=(output_size, output_size),
            kernel=(kernel, kernel),
            stride=(stride, stride),
            groups=groups,
            macs=output_size * output_size * weights,
            weights=weights,
        )

    @property
    def input_values(self) -> int:
        """The number of input values for one example."""
        return math.prod(self.input_size) * self.in_channels

    @property
    def output_values(self) -> int:
        """The number of output values for one example."""
        return math.prod(self.output_size) * self.out_channels


class LayerCall(NamedTuple):
    """A call of a layer, its kernel axes and the shapes of its input and output."""

    layer: nn.Module
    axes: KernelAxes
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]


def layer_spec(call: LayerCall) -> LayerSpec:
    """The spec of one run of a layer."""
    layer, axes = call.layer, call.axes
    path = "/".join(layer.path)
    output_values = math.prod(call.output_shape)
    if isinstance(layer, nn.Conv | nn.ConvLocal | nn.ConvTranspose):
        kernel = _per_axis(layer.kernel_size, 1)
        rank = len(kernel)
        if len(call.input_shape) < rank + 1:
            raise ValueError(f"{path}: its input {call.input_shape} has fewer axes than images with channels")
        stride = _per_axis(layer.strides or 1, rank)
        transposed = isinstance(layer, nn.ConvTranspose)
        inserted = stride if transposed else _per_axis(layer.input_dilation or 1, rank)
        output_size = call.output_shape[-rank - 1 : -1]
        spec = LayerSpec(
            path=path,
            kind="conv_transpose" if transposed else "conv_local" if isinstance(layer, nn.ConvLocal) else "conv",
            in_channels=call.input_shape[-1],
            out_channels=call.output_shape[-1],
            input_size=tuple(call.input_shape[-rank - 1 : -1]),
            output_size=tuple(output_size),
            kernel=kernel,
            stride=stride,
            groups=layer.feature_group_count if isinstance(layer, nn.Conv) else 1,
            macs=math.prod(output_size) * call.output_shape[-1] * axes.contracted_size // math.prod(inserted),
            weights=math.prod(axes.shape),
            dilation=_per_axis(layer.kernel_dilation or 1, rank),
            input_dilation=(1,) * rank if transposed else inserted,
        )
        # Convolutions flatten all axes before those of an image, as of frames.
        return times(spec, output_values // spec.output_values)
    positions = tuple(
        size
        for axis, size in enumerate(call.output_shape)
        if axis not in {a % len(call.output_shape) for a in axes.output_axes}
    )
    groups = math.prod(axes.shape[axis] for axis in axes.shared)
    # The kernel's channels may be several axes, as of heads; those that it shares with the input are groups.
    size = positions[1:] if positions[:1] == (1,) else positions
    return LayerSpec(
        path=path,
        kind="dense",
        in_channels=groups * axes.contracted_size,
        out_channels=math.prod(axes.output_shape),
        input_size=size,
        output_size=size,
        kernel=(),
        stride=(),
        groups=groups,
        macs=output_values * axes.contracted_size,
        weights=math.prod(axes.shape),
    )


def times(spec: LayerSpec, runs: int) -> LayerSpec:
    """The layer, run so many times as often."""
    return dataclasses.replace(spec, macs=spec.macs * runs, runs=spec.runs * runs)


def added(first: LayerSpec | None, again: LayerSpec) -> LayerSpec:
    """A layer that is called several times: its weights count once, its sizes are those of the largest run."""
    if first is None:
        return again
    largest = max(first, again, key=lambda spec: spec.macs / spec.runs)
    macs = first.macs + again.macs
    return dataclasses.replace(largest, macs=macs, runs=largest.runs * macs / largest.macs)


def _per_axis(size: int | Sequence[int], axes: int) -> tuple[int, ...]:
    return (size,) * axes if isinstance(size, int) else tuple(size)


def product_call(path: str, equation: str, left: jax.Array, right: jax.Array) -> LayerSpec | None:
    """The spec of one run of a `Product`; None if it multiplies value by value, which no matrix unit does."""
    factors = (jax.ShapeDtypeStruct(factor.shape, factor.dtype) for factor in (left, right))
    jaxpr = jax.make_jaxpr(functools.partial(jnp.einsum, equation))(*factors).jaxpr
    return next((product(path, found) for found in contractions(jaxpr)), None)


def product(path: str, found: Contraction) -> LayerSpec:
    """The spec of a product of two activations."""
    left, right = (variable.aval for variable in found.equation.invars)
    results = found.equation.outvars[0].aval.size
    contracted = found.macs // results
    return LayerSpec(
        path=path,
        kind="product",
        in_channels=contracted,
        out_channels=1,
        input_size=((left.size + right.size) // contracted,),
        output_size=(results,),
        kernel=(),
        stride=(),
        groups=1,
        macs=found.macs,
        weights=0,
    )
