"""Which values share a clip threshold, and which scales a device can store for them.

A threshold is computed from a tensor in three steps, each a function that is passed in: a *statistic* of values, the
*granularity* at which it is taken, and the *scale rule* that makes the scale storable. `Clipping` puts them together;
the microscaling formats (MXFP4, MXFP6, MXFP8, MXINT8) and NVFP4 are `BLOCK_FORMATS` made of the same parts.
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
    """One threshold for all of `x`: a scalar."""
    return statistic(x, None)


def per_channel(*axes: int) -> Granularity:
    """One threshold for each index of `axes`; −1 gives the output channels of a kernel, −2 and −1 all its columns.

    Raises:
      ValueError: when applied to a tensor that lacks such an axis.
    """

    def granularity(x: jax.Array, statistic: Statistic) -> jax.Array:
        kept = {_axis_of(x.shape, axis) for axis in axes}
        return statistic(x, tuple(axis for axis in range(x.ndim) if axis not in kept))

    return granularity


class Blocks(NamedTuple):
    """Blocks of `size` successive values along `axis`, the last of which may be shorter; one threshold each.

    An instance is a granularity, whose thresholds have the shape of the tensor; `thresholds` gives them one per block.
    """

    size: int
    axis: int

    def __call__(self, x: jax.Array, statistic: Statistic) -> jax.Array:
        """As `thresholds`, repeated for each value."""
        return self.spread(self.thresholds(x, statistic), x.shape)

    def thresholds(self, x: jax.Array, statistic: Statistic) -> jax.Array:
        """The shape of `x` with ⌈n / size⌉ instead of n along `axis`."""
        axis = _axis_of(x.shape, self.axis)
        whole = x.shape[axis] // self.size
        blocks, rest = jnp.split(x, [whole * self.size], axis)
        parts = []
        if whole:
            split = blocks.reshape(*x.shape[:axis], whole, self.size, *x.shape[axis + 1 :])
            parts.append(jnp.squeeze(statistic(split, (axis + 1,)), axis + 1))
        if rest.size:
            parts.append(statistic(rest, (axis,)))
        return jnp.concatenate(parts, axis)

    def spread(self, thresholds: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """From one per block to one per value of a tensor of this shape."""
        axis = _axis_of(shape, self.axis)
        return jax.lax.slice_in_dim(jnp.repeat(thresholds, self.size, axis), 0, shape[axis], axis=axis)


def per_block(size: int, axis: int) -> Blocks:
    """One threshold for each `size` successive values along `axis`.

    Raises:
      ValueError: a size below 1; a tensor that lacks the axis, when applied.
    """
    if size < 1:
        raise ValueError(f"blocks of {size} values: expected at least 1")
    return Blocks(size, axis)


def kernel_granularity(name: str) -> Granularity:
    """The granularity of a kernel by name: `per_tensor`, `per_channel` (of the output), `per_block_32` (of the input).

    Raises:
      ValueError: an unknown name.
    """
    if name == "per_tensor":
        return per_tensor
    if name == "per_channel":
        return per_channel(-1)
    if found := re.fullmatch(r"per_block_([1-9]\d*)", name):
        return per_block(int(found[1]), axis=-2)
    raise ValueError(
        f"unknown granularity {name!r}: expected per_tensor, per_channel, or per_block_N as in per_block_32"
    )


def _axis_of(shape: tuple[int, ...], axis: int) -> int:
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f"no axis {axis} in a tensor of shape {shape}")
    return axis % len(shape)


def any_scale(clip: jax.Array, row: FormatTable) -> jax.Array:
    """Scales are float32."""
    del row
    return clip


def power_of_two(clip: jax.Array, row: FormatTable) -> jax.Array:
    """Scales are 8-bit exponents (E8M0) such that `clip` and the largest code have the same exponent.

    A value within a factor of two below the next power of two saturates.

    Source: OCP Microscaling Formats (MX) v1.0, §6.3.
    """
    scale = jnp.maximum(
        numerics.floor_to_power_of_two(clip) / numerics.floor_to_power_of_two(row.largest), _SMALLEST_SCALE
    )
    return jnp.where(clip > 0, scale * row.largest, 0.0)


def saturation_free_power_of_two(clip: jax.Array, row: FormatTable) -> jax.Array:
    """As `power_of_two`, but the smallest scale at which `clip` itself does not saturate."""
    floor = power_of_two(clip, row)
    return jnp.where(floor < clip, 2 * floor, floor)


def scale_in_format(name: str) -> ScaleRule:
    """Scales are codes of the format `name` times one float32 for the whole tensor, as in NVFP4."""
    scale_format = parse_format(name)
    smallest = float(scale_format.magnitudes()[1])

    def rule(clip: jax.Array, row: FormatTable) -> jax.Array:
        scale_row = format_table([scale_format], [1.0]).row(0)
        scale = clip / row.largest
        unit = jnp.max(scale) / scale_row.largest
        unit = jnp.where(unit > 0, unit, 1.0)
        return jnp.maximum(numerics.round_to_grid(scale / unit, scale_row), smallest) * unit * row.largest

    return rule


_SMALLEST_SCALE = 2.0**-126


@dataclasses.dataclass(frozen=True)
class Clipping:
    """The clip threshold of a tensor: the format's clip multiple × a statistic, at some granularity, made storable.

    With statistics other than the root mean square, for which multiples are tabulated, take 1 for the multiples.
    """

    statistic: Statistic
    granularity: Granularity = per_tensor
    scale_rule: ScaleRule = any_scale

    def __call__(self, x: jax.Array, row: FormatTable) -> jax.Array:
        """The threshold, float32 that broadcasts against `x`."""
        return self.scale_rule(row.clip_multiple * self.granularity(x, self.statistic), row)


class BlockFormat(NamedTuple):
    """A number format for the values, and blocks of so many that share a scale of some kind."""

    element: str
    size: int
    scale_rule: ScaleRule
    scale_bits: int

    @property
    def bits(self) -> float:
        """Storage bits per value, the block's scale included."""
        return parse_format(self.element).bits + self.scale_bits / self.size


BLOCK_FORMATS: dict[str, BlockFormat] = {
    # OCP Microscaling Formats (MX) v1.0, Table 1. MXINT8's −2 has no counterpart here: integers are symmetric.
    "mxfp8_e4m3": BlockFormat("e4m3fn", 32, power_of_two, 8),
    "mxfp8_e5m2": BlockFormat("e5m2ieee", 32, power_of_two, 8),
    "mxfp6_e2m3": BlockFormat("e2m3", 32, power_of_two, 8),
    "mxfp6_e3m2": BlockFormat("e3m2", 32, power_of_two, 8),
    "mxfp4": BlockFormat("e2m1", 32, power_of_two, 8),
    "mxint8": BlockFormat("int8", 32, power_of_two, 8),
    "nvfp4": BlockFormat("e2m1", 16, scale_in_format("e4m3fn"), 8),
}


def block_clip(x: jax.Array, name: str, *, axis: int = -1) -> tuple[Blocks, jax.Array]:
    """The blocks of `x` in a block format, and the threshold of each.

    Args:
      x: float32, of any shape but a scalar.
      name: one of `BLOCK_FORMATS`.
      axis: along which values form blocks; that of the contraction, as a rule.

    Returns:
      The blocks, and float32 of the shape of `x` but for one value per block along `axis`.

    Raises:
      ValueError: no such block format, or no such axis.
    """
    if name not in BLOCK_FORMATS:
        raise ValueError(f"unknown block format {name!r}: expected one of {', '.join(BLOCK_FORMATS)}")
    block = BLOCK_FORMATS[name]
    blocks = per_block(block.size, axis)
    row = format_table([parse_format(block.element)], [1.0]).row(0)
    return blocks, block.scale_rule(blocks.thresholds(x, calibration.absolute_max), row)


def quantize_blocks(x: jax.typing.ArrayLike, name: str, *, axis: int = -1) -> jax.Array:
    """The values of `x` in a block format, dequantised: `quantize_blocks(x, "mxfp4")`; arguments as in `block_clip`."""
    values = jnp.asarray(x, jnp.float32)
    blocks, clip = block_clip(values, name, axis=axis)
    return numerics.quantize(values, BLOCK_FORMATS[name].element, clip=blocks.spread(clip, values.shape))
