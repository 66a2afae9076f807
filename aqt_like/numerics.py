"""Rounding to any number format, whose parameters may be traced; the code is branch-free.

Functions here define no gradients: training uses the estimators in `gradients`.
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
    """The largest power of two up to `x` ≥ 0, float32 of the shape of `x`; 0 for subnormal float32 values."""
    return _float_of(_bits_of(jnp.asarray(x, jnp.float32)) & _EXPONENT_FIELD)


def saturate(x: jax.Array, lowest: jax.Array, largest: jax.Array) -> jax.Array:
    """Clips `x` to `lowest` … `largest` (FLIQS, Eq. 11); NaN stays NaN. The gradient is that of the branch taken."""
    x = jnp.where(x > largest, largest, x)
    return jnp.where(x < lowest, lowest, x)


def round_to_grid(x: jax.Array, row: FormatTable) -> jax.Array:
    """Rounds to the nearest value of a format, ties to even, saturating at its lowest and largest value.

    This is the rounding ⌊·⌉ of FLIQS, Eq. 10, for integers and floats alike. It is exact for every float32, including
    subnormals, under any fast-math of the compiler; NaN stays NaN, −0 stays −0.

    Args:
      x: float32, any shape, in units of the format.
      row: the format, scalars or arrays that broadcast against `x`.

    Returns:
      float32 of the shape of `x`.
    """
    return _rounded(saturate(x, row.lowest, row.largest), _bits_of(x), row)


def round_within_range(x: jax.Array, row: FormatTable) -> jax.Array:
    """Rounds as `round_to_grid`, but without saturation: `x` must be within the range, up to a rounding error."""
    return _rounded(x, _bits_of(x), row)


def _rounded(x: jax.Array, bits: jax.Array, row: FormatTable) -> jax.Array:
    """Rounds `x`, which is within range; `bits` are its bits before saturation, which may flush subnormals to zero.

    Below the smallest normal number of the format, values are evenly spaced: adding 1.5 · 2^23 steps rounds to a whole
    step. The added number is read from the exponent of the sum, so that no compiler can cancel it. Above it, values are
    float32 with fewer fraction bits: the dropped bits are rounded in the integer representation, where a carry
    increments the exponent. Integers use only the first case, bf16 and fp32 only the second.
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

    # NaN compares as not normal, and remains NaN in the sum.
    normal = jnp.abs(x) >= jnp.where(row.scaled, _float_of(smallest_normal), 0.0)
    rounded = jnp.where(normal, shortened, evenly_spaced)
    return _float_of((_bits_of(x) & _SIGN_BIT) | (rounded & ~_SIGN_BIT))


def scale_for(row: FormatTable, clip: jax.Array) -> jax.Array:
    """The scale of a format: `clip` / its largest value, the 1/s of FLIQS, Eq. 4 and 10. float32, shape of `clip`.

    It is 1 for unscaled formats, and where `clip` is 0 (a tensor of zeros).
    """
    return jnp.where(row.scaled & (clip > 0), clip / row.largest, 1.0)


def quantize(x: jax.typing.ArrayLike, fmt: str, *, clip: jax.typing.ArrayLike | None = None) -> jax.Array:
    """Quantises `x` to a number format and dequantises it (FLIQS, Q of Eq. 4).

    Args:
      x: float32, or bfloat16 or float16, any shape.
      fmt: name of the format, as in `formats.parse_format`.
      clip: clip threshold, the value of the format's largest code; broadcasts against `x`. Unscaled formats (bf16,
        fp32) ignore it. The largest finite magnitude of `x` if None.

    Returns:
      float32 of the shape of `x`: the nearest values, ties to even, saturating; NaN stays NaN.

    Raises:
      UnknownFormatError: `fmt` is no number format.
      ValueError: `clip` is negative, infinite or NaN.
    """
    values, scale = quantize_to_grid(x, fmt, clip=clip)
    return values * scale if parse_format(fmt).scaled else values


def quantize_to_grid(
    x: jax.typing.ArrayLike, fmt: str, *, clip: jax.typing.ArrayLike | None = None
) -> tuple[jax.Array, jax.Array]:
    """The values x_q of the format (FLIQS, Eq. 10) and their scale, both float32; `quantize` returns the product."""
    parsed = parse_format(fmt)
    row = format_table([parsed], [1.0]).row(0)
    values = jnp.asarray(x, jnp.float32)
    if not parsed.scaled:  # Dividing by 1 would flush subnormals on some hardware.
        return round_to_grid(values, row), jnp.ones(())
    if clip is None:
        clip = jnp.max(jnp.abs(values), initial=0.0, where=jnp.isfinite(values))
    elif not isinstance(clip, jax.core.Tracer) and not np.all(np.isfinite(clip) & (np.asarray(clip) >= 0)):
        raise ValueError(f"clip {clip}: expected the finite magnitude that the largest code of {fmt} stands for")
    scale = scale_for(row, jnp.asarray(clip, jnp.float32))
    return round_to_grid(values / scale, row), scale
