"""Rounding to any number format with traced parameters. Nothing here branches, nothing here has a gradient of its own.

What a training step uses is in `gradients`.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from aqt_like.formats import FormatTable, format_table, parse_format

_SIGN_BIT = -(2**31)
_EXPONENT_FIELD = 0x7F800000
_HALF = 0x400000  # the highest fraction bit
_EXPONENT_BIAS = 127
_FRACTION_BITS = 23


def _bits_of(x: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(x, jnp.int32)


def _float_of(bits: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(bits, jnp.float32)


def floor_to_power_of_two(x: jax.Array) -> jax.Array:
    """The largest power of two that does not exceed `x`, which is not negative; 0 for float32's subnormals."""
    return _float_of(_bits_of(jnp.asarray(x, jnp.float32)) & _EXPONENT_FIELD)


def saturate(x: jax.Array, lowest: jax.Array, largest: jax.Array) -> jax.Array:
    """`x` between `lowest` and `largest`; NaN stays NaN. Its gradient is that of the branch taken."""
    x = jnp.where(x > largest, largest, x)
    return jnp.where(x < lowest, lowest, x)


def round_to_grid(x: jax.Array, row: FormatTable) -> jax.Array:
    """Rounds to the nearest value of a format, ties to even, saturating at its lowest and largest value.

    Exact for every float32, subnormals included, whatever fast-math the compiler applies; NaN stays NaN, −0 stays −0.

    Args:
      x: float32, any shape, already in the format's units.
      row: the format, scalars or arrays that broadcast against `x`.

    Returns:
      float32 of the shape of `x`.
    """
    return _rounded(saturate(x, row.lowest, row.largest), _bits_of(x), row)


def round_within_range(x: jax.Array, row: FormatTable) -> jax.Array:
    """As `round_to_grid`, for `x` that lies between the format's lowest and largest value but for a rounding error."""
    return _rounded(x, _bits_of(x), row)


def _rounded(x: jax.Array, bits: jax.Array, row: FormatTable) -> jax.Array:
    """Rounds `x`, which is within range; `bits` are those from before it was saturated, which may flush subnormals.

    Below the format's smallest normal number the grid is evenly spaced: adding 1.5 · 2^23 steps leaves nothing below
    one step. What was added is read back from the sum's exponent, so that no compiler can cancel it. From there on the
    grid is that of float32 with fewer fraction bits: the dropped bits are rounded in the integer representation, where
    a carry raises the exponent. Integers use only the former, bf16 and fp32 only the latter.
    """
    dropped = _FRACTION_BITS - row.mantissa_bits
    smallest_normal = row.smallest_exponent + _EXPONENT_BIAS << _FRACTION_BITS
    total = x + _float_of(smallest_normal + (dropped << _FRACTION_BITS | _HALF))
    evenly_spaced = _bits_of(total - _float_of((_bits_of(total) & _EXPONENT_FIELD) | _HALF))

    magnitude = bits & ~_SIGN_BIT
    last_kept = 1 << dropped
    half = last_kept >> 1
    shortened = (magnitude + jnp.where(magnitude & last_kept != 0, half, jnp.maximum(half - 1, 0))) & -last_kept
    shortened = jnp.minimum(shortened, _bits_of(row.largest))

    # A NaN compares as not normal, and stays one in the sum.
    normal = jnp.abs(x) >= jnp.where(row.scaled, _float_of(smallest_normal), 0.0)
    rounded = jnp.where(normal, shortened, evenly_spaced)
    return _float_of((_bits_of(x) & _SIGN_BIT) | (rounded & ~_SIGN_BIT))


def scale_for(row: FormatTable, clip: jax.Array) -> jax.Array:
    """What one unit of the format stands for, so that its largest value stands for `clip` (1 for unscaled formats).

    A clip threshold of zero (a tensor of zeros) gives the scale 1.
    """
    return jnp.where(row.scaled & (clip > 0), clip / row.largest, 1.0)


def quantize(x: jax.typing.ArrayLike, fmt: str, *, clip: jax.typing.ArrayLike | None = None) -> jax.Array:
    """The values of `x` in a number format, dequantised: the plain entry, without gradient tricks or tables.

    Args:
      x: float32, or bfloat16 or float16, which are exact in float32, of any shape.
      fmt: name of the format, as in `formats.parse_format`.
      clip: the value that the format's largest code stands for, broadcasts against `x`; unscaled formats (bf16, fp32)
        ignore it. The largest finite magnitude of `x` if None.

    Returns:
      float32 of the shape of `x`: the nearest values, ties to even, saturating; NaN stays NaN.

    Raises:
      UnknownFormatError: no such format.
      ValueError: a clip that is negative, infinite or NaN.
    """
    values, scale = quantize_to_grid(x, fmt, clip=clip)
    return values * scale if parse_format(fmt).scaled else values


def quantize_to_grid(
    x: jax.typing.ArrayLike, fmt: str, *, clip: jax.typing.ArrayLike | None = None
) -> tuple[jax.Array, jax.Array]:
    """As `quantize`, but before the values are scaled back: values of the format, and what its unit stands for."""
    parsed = parse_format(fmt)
    row = format_table([parsed], [1.0]).row(0)
    values = jnp.asarray(x, jnp.float32)
    if not parsed.scaled:  # Not even divided by 1, which flushes subnormals on some hardware.
        return round_to_grid(values, row), jnp.ones(())
    if clip is None:
        clip = jnp.max(jnp.abs(values), initial=0.0, where=jnp.isfinite(values))
    elif not isinstance(clip, jax.core.Tracer) and not np.all(np.isfinite(clip) & (np.asarray(clip) >= 0)):
        raise ValueError(f"clip {clip}: expected the finite magnitude that the largest code of {fmt} stands for")
    scale = scale_for(row, jnp.asarray(clip, jnp.float32))
    return round_to_grid(values / scale, row), scale
