"""Granularity: which values share a clip threshold, and how their scales are stored.

`Clipping` computes the thresholds of a tensor from three functions: a *statistic* of values, the *granularity* (per
tensor, per channel or per block) at which it is taken, and the *scale rule* that rounds scales to what a device stores.
The microscaling formats (MXFP4, MXFP6, MXFP8, MXINT8) and NVFP4, `BLOCK_FORMATS`, are made of the same parts.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from aqt_like import calibration, numerics
from aqt_like.calibration import Statistic
from aqt_like.formats import FormatTable, format_table, parse_format

Granularity = Callable[[jax.Array, Statistic], jax.Array]
ScaleRule = Callable[[jax.Array, FormatTable], jax.Array]
Clip = Callable[[jax.Array, FormatTable], jax.Array]


def per_tensor(x: jax.Array, statistic: Statistic) -> jax.Array:
    """One threshold for the whole tensor: float32 scalar."""
    return statistic(x, None)


def per_channel(*axes: int) -> Granularity:
    """A granularity with one threshold per index of `axes`: −1 for each output channel of a kernel.

    Raises:
      ValueError: on a tensor without one of the axes, when applied.
    """

    def granularity(x: jax.Array, statistic: Statistic) -> jax.Array:
        kept_axes = {_axis_of(x.shape, axis) for axis in axes}
        return statistic(x, tuple(axis for axis in range(x.ndim) if axis not in kept_axes))

    return granularity


class Blocks(NamedTuple):
    """A granularity with one threshold per block of `size` successive values along `axis`; the last may be shorter.

    Called, it returns thresholds of the shape of the tensor; `thresholds` returns one per block.
    """

    size: int
    axis: int

    def __call__(self, x: jax.Array, statistic: Statistic) -> jax.Array:
        """The threshold of each value's block, float32 of the shape of `x`."""
        return self.spread(self.thresholds(x, statistic), x.shape)

    def thresholds(self, x: jax.Array, statistic: Statistic) -> jax.Array:
        """The threshold of each block, float32 of the shape of `x` but for ⌈n / size⌉ values along `axis`."""
        axis = _axis_of(x.shape, self.axis)
        whole = x.shape[axis] // self.size
        blocks, rest = jnp.split(x, [whole * self.size], axis)
        parts = []
        if whole or not rest.shape[axis]:
            split = blocks.reshape(*x.shape[:axis], whole, self.size, *x.shape[axis + 1 :])
            parts.append(jnp.squeeze(statistic(split, (axis + 1,)), axis + 1))
        if rest.shape[axis]:
            parts.append(statistic(rest, (axis,)))
        return jnp.concatenate(parts, axis)

    def spread(self, thresholds: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Repeats one threshold per block to one per value of a tensor of shape `shape`.

        Raises:
          ValueError: `thresholds` has other axes than the tensor, or another number of blocks.
        """
        axis = _axis_of(shape, self.axis)
        count = -(-shape[axis] // self.size)
        if thresholds.ndim != len(shape) or thresholds.shape[axis] != count:
            raise ValueError(
                f"thresholds of shape {thresholds.shape}: expected {count} along axis {axis}, for a tensor of {shape}"
            )
        return jax.lax.slice_in_dim(jnp.repeat(thresholds, self.size, axis), 0, shape[axis], axis=axis)

    def gather(self, spread: jax.Array) -> jax.Array:
        """The first value of each block: one threshold per block again, from what `spread` returns."""
        axis = _axis_of(spread.shape, self.axis)
        return jax.lax.slice_in_dim(spread, 0, spread.shape[axis], self.size, axis)


def per_block(size: int, axis: int) -> Blocks:
    """A granularity with one threshold per block of `size` successive values along `axis`.

    Raises:
      ValueError: `size` is below 1; on a tensor without the axis, when applied.
    """
    if size < 1:
        raise ValueError(f"blocks of {size} values: expected at least 1")
    return Blocks(size, axis)


def kernel_granularity(name: str) -> Granularity:
    """The granularity of a kernel by name: `per_tensor`, `per_channel` (output) or `per_block_N` (input channels).

    Raises:
      ValueError: the name is none of these.
    """
    if name == "per_tensor":
        return per_tensor
    if name == "per_channel":
        return per_channel(-1)
    if match := re.fullmatch(r"per_block_([1-9]\d*)", name):
        return per_block(int(match[1]), axis=-2)
    raise ValueError(
        f"unknown granularity {name!r}: expected per_tensor, per_channel, or per_block_N as in per_block_32"
    )


def _axis_of(shape: tuple[int, ...], axis: int) -> int:
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f"no axis {axis} in a tensor of shape {shape}")
    return axis % len(shape)


def float32_scale(clip: jax.Array, row: FormatTable) -> jax.Array:
    """The scale rule of float32 scales: `clip` is unchanged."""
    del row
    return clip


def power_of_two(clip: jax.Array, row: FormatTable) -> jax.Array:
    """The scale rule of MX formats: scales are powers of two (E8M0).

    The exponent of a scale is that of `clip` less that of the format's largest value. Values between that largest value
    and the next power of two saturate.

    Source: OCP Microscaling Formats (MX) v1.0, §6.3.
    """
    scale = jnp.maximum(
        numerics.floor_to_power_of_two(clip) / numerics.floor_to_power_of_two(row.largest), _SMALLEST_SCALE
    )
    return jnp.where(clip > 0, scale * row.largest, 0.0)


def saturation_free_power_of_two(clip: jax.Array, row: FormatTable) -> jax.Array:
    """The scale rule of the smallest power of two at which `clip` does not saturate, or the largest in float32."""
    floor = power_of_two(clip, row)
    return jnp.where((floor < clip) & jnp.isfinite(2 * floor), 2 * floor, floor)


def scale_in_format(name: str) -> ScaleRule:
    """A scale rule as in NVFP4: scales are values of the format `name` times one float32 for the whole tensor."""
    scale_format = parse_format(name)
    smallest = float(scale_format.magnitudes()[1])

    def rule(clip: jax.Array, row: FormatTable) -> jax.Array:
        scale_row = format_table([scale_format], [1.0]).row(0)
        unit = jnp.maximum(jnp.max(clip, initial=0.0) / row.largest / scale_row.largest, _SMALLEST_SCALE)
        code = jnp.maximum(numerics.round_to_grid(clip / (unit * row.largest), scale_row), smallest)
        return jnp.minimum(code * unit * row.largest, jnp.finfo(jnp.float32).max)

    return rule


_SMALLEST_SCALE = 2.0**-126

SCALE_RULES: dict[str, ScaleRule] = {"float32": float32_scale, "power_of_two": power_of_two}
"""The scale rules that an experiment can choose from, by name."""


@dataclasses.dataclass(frozen=True)
class Clipping:
    """The clip thresholds of a tensor: clip multiple × statistic at a granularity, adapted by the scale rule.

    Tabulated clip multiples are for the root mean square; with another statistic, format rows need multiples of 1.
    """

    statistic: Statistic
    granularity: Granularity = per_tensor
    scale_rule: ScaleRule = float32_scale

    def __call__(self, x: jax.Array, row: FormatTable) -> jax.Array:
        """The thresholds of `x` under the format `row`: float32 that broadcasts against `x`."""
        return self.scale_rule(row.clip_multiple * self.granularity(x, self.statistic), row)


class BlockFormat(NamedTuple):
    """A format of blocks that share a scale.

    Attributes:
      element: name of the format of the values.
      size: values per block.
      scale_rule: how scales are rounded.
      scale_bits: storage bits of a scale.
    """

    element: str
    size: int
    scale_rule: ScaleRule
    scale_bits: int

    @property
    def bits(self) -> float:
        """Storage bits per value, including its share of the scale."""
        return parse_format(self.element).bits + self.scale_bits / self.size


BLOCK_FORMATS: dict[str, BlockFormat] = {
    # OCP Microscaling Formats (MX) v1.0, Table 1. MXINT8 lacks its −2 here, since integers are symmetric.
    "mxfp8_e4m3": BlockFormat("e4m3fn", 32, power_of_two, 8),
    "mxfp8_e5m2": BlockFormat("e5m2ieee", 32, power_of_two, 8),
    "mxfp6_e2m3": BlockFormat("e2m3", 32, power_of_two, 8),
    "mxfp6_e3m2": BlockFormat("e3m2", 32, power_of_two, 8),
    "mxfp4": BlockFormat("e2m1", 32, power_of_two, 8),
    "mxint8": BlockFormat("int8", 32, power_of_two, 8),
    "nvfp4": BlockFormat("e2m1", 16, scale_in_format("e4m3fn"), 8),
}


def block_clip(x: jax.Array, name: str, *, axis: int = -1) -> tuple[Blocks, jax.Array]:
    """The blocks of `x` in a block format, and their clip thresholds.

    Args:
      x: float32, any shape but a scalar.
      name: one of `BLOCK_FORMATS`.
      axis: the axis of the blocks, usually the contracted one.

    Returns:
      The blocks, and their thresholds: float32 of the shape of `x` but for one value per block along `axis`.

    Raises:
      ValueError: `name` is no block format, or `x` has no such axis.
    """
    if name not in BLOCK_FORMATS:
        raise ValueError(f"unknown block format {name!r}: expected one of {', '.join(BLOCK_FORMATS)}")
    block = BLOCK_FORMATS[name]
    blocks = per_block(block.size, axis)
    row = format_table([parse_format(block.element)], [1.0]).row(0)
    return blocks, block.scale_rule(blocks.thresholds(x, calibration.absolute_max), row)


def quantize_blocks(x: jax.typing.ArrayLike, name: str, *, axis: int = -1) -> jax.Array:
    """Quantises `x` to a block format and dequantises it, float32; see `block_clip` for arguments and errors."""
    values = jnp.asarray(x, jnp.float32)
    blocks, clip = block_clip(values, name, axis=axis)
    return numerics.quantize(values, BLOCK_FORMATS[name].element, clip=blocks.spread(clip, values.shape))
