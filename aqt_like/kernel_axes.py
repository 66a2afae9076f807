"""Kernel axes: which axes of a layer's kernel are output channels, which are contracted, and where outputs appear.

Quantisation knows one layout only: contracted axes first, all output channels in the last axis. `KernelAxes` moves a
kernel of any linen layer into this layout and back, and a value per output channel to the axes of the layer's output.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import opt_einsum


class KernelAxes(NamedTuple):
    """The axes of a kernel of shape `shape`.

    Attributes:
      shape: shape of the kernel.
      outputs: axes of the kernel that index output channels, in the order of the output. They include the axes that
        kernel, input and output share, as the batch axes of `nn.DenseGeneral` and the positions of `nn.ConvLocal`.
      output_axes: for each of these, the axis of the layer's output that it indexes.
      shared: those of them that the input has as well.
    """

    shape: tuple[int, ...]
    outputs: tuple[int, ...]
    output_axes: tuple[int, ...]
    shared: tuple[int, ...] = ()

    @property
    def contracted(self) -> tuple[int, ...]:
        """The axes of the kernel that are summed over."""
        return tuple(axis for axis in range(len(self.shape)) if axis not in self.outputs)

    @property
    def contracted_size(self) -> int:
        """The number of terms that are summed for an output value."""
        return math.prod(self.shape[axis] for axis in self.contracted)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """The sizes of the output axes of the kernel, in the order of the output."""
        return tuple(self.shape[axis] for axis in self.outputs)

    def to_channels_last(self, kernel: jax.Array) -> jax.Array:
        """The kernel as `[contracted axes …, output channels]`."""
        contracted_shape = tuple(self.shape[axis] for axis in self.contracted)
        return kernel.transpose(*self.contracted, *self.outputs).reshape(*contracted_shape, -1)

    def from_channels_last(self, values: jax.Array) -> jax.Array:
        """A tensor as `to_channels_last` returns, in the layout of the kernel."""
        axes = (*self.contracted, *self.outputs)
        moved = values.reshape([self.shape[axis] for axis in axes])
        return moved.transpose([axes.index(axis) for axis in range(len(axes))])

    def on_output(self, values: jax.Array, output_rank: int) -> jax.Array:
        """One value per output channel, in the order of `to_channels_last`, such that it broadcasts against the output.

        Args:
          values: as many values as output channels, any shape; a single value is returned as a scalar.
          output_rank: number of axes of the output.
        """
        if values.size == 1:
            return values.reshape(())
        shape = [1] * output_rank
        for axis, size in zip(self.output_axes, self.output_shape, strict=True):
            shape[axis] = size
        return values.reshape(shape)


def kernel_axes(
    layer: nn.Module, kernel_shape: Sequence[int], input_shape: Sequence[int], equation: str | None = None
) -> KernelAxes:
    """The axes of the kernel of a linen layer.

    Args:
      layer: an `nn.Conv`, `nn.ConvLocal`, `nn.ConvTranspose`, `nn.Dense`, `nn.DenseGeneral` or `nn.Einsum`.
      kernel_shape: shape of its kernel.
      input_shape: shape of its input; read for an einsum with an ellipsis.
      equation: of an `nn.Einsum`, the equation that it is called with, if any.

    Raises:
      ValueError: an einsum that reads a diagonal of its kernel.
      TypeError: another layer.
    """
    shape = tuple(kernel_shape)
    last = len(shape) - 1
    if isinstance(layer, nn.Conv | nn.Dense):
        return KernelAxes(shape, (last,), (-1,))
    if isinstance(layer, nn.ConvTranspose):
        return KernelAxes(shape, (last - 1 if layer.transpose_kernel else last,), (-1,))
    if isinstance(layer, nn.ConvLocal):
        positions = tuple(range(last - 1))
        return KernelAxes(shape, (*positions, last), tuple(axis - last for axis in range(last)), positions)
    if isinstance(layer, nn.DenseGeneral):
        batch, contracted = len(layer.batch_dims), _count(layer.axis)
        features = tuple(range(batch + contracted, len(shape)))
        return KernelAxes(
            shape,
            (*range(batch), *features),
            (*range(batch), *(axis - len(shape) for axis in features)),
            tuple(range(batch)),
        )
    if isinstance(layer, nn.Einsum):
        return _einsum_axes(layer, shape, tuple(input_shape), equation or layer.einsum_str or "")
    raise TypeError(f"{type(layer).__name__}: expected a linen layer with a kernel")


def _count(axes: int | Sequence[int]) -> int:
    return 1 if isinstance(axes, int) else len(axes)


def _einsum_axes(layer: nn.Module, shape: tuple[int, ...], input_shape: tuple[int, ...], equation: str) -> KernelAxes:
    operands: list[Any] = [jax.ShapeDtypeStruct(size, jnp.float32) for size in (input_shape, shape)]
    letters, result, _ = opt_einsum.parser.parse_einsum_input((equation.replace(" ", ""), *operands))
    of_input, of_kernel = letters.split(",")
    if len(set(of_kernel)) < len(of_kernel):
        raise ValueError(
            f"{'/'.join(layer.path)}: {equation!r} reads a diagonal of its kernel, so that it cannot be quantised: "
            "leave the layer in float"
        )
    positions = [position for position, letter in enumerate(result) if letter in of_kernel]
    return KernelAxes(
        shape,
        tuple(of_kernel.index(result[position]) for position in positions),
        tuple(positions),
        tuple(axis for axis, letter in enumerate(of_kernel) if letter in of_input and letter in result),
    )
