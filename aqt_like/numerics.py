"""Rounding to any number format, whose parameters may be traced; the code is branch-free.

Functions here define no gradients: training uses the estimators in `gradients`. `round_to_grid` and
`round_within_range` are calls by these names in what JAX traces, so that exports find them.
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
_SMALLEST_SCALE_EXPONENT = -126  # of the smallest normal float32: hardware may flush smaller ones to zero
_LARGEST_CLIP = np.nextafter(np.finfo(np.float32).max, np.float32(0))  # its scale × the largest code never overflows


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


@jax.jit
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


@jax.jit
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


def _with_exponent(x: jax.Array, exponent: int) -> jax.Array:
    """The fraction bits of `x` as a float32 of 2^exponent … 2^(exponent + 1)."""
    fraction = _bits_of(x) & ~(_SIGN_BIT | _EXPONENT_FIELD)
    return _float_of(fraction | exponent + _EXPONENT_BIAS << _FRACTION_BITS)


def scale_for(row: FormatTable, clip: jax.Array) -> jax.Array:
    """The scale of a format: `clip` / its largest value, the 1/s of FLIQS, Eq. 4 and 10. float32, shape of `clip`.

    It is a normal float32 for every finite `clip`, since hardware may flush subnormal ones to zero: a smaller quotient
    is doubled until it is normal. Doubled scales keep the values of a float format up to `clip`; those of an integer
    are rounded to a multiple of less than 2^−125. Values beyond `clip` no longer saturate there, unless the caller
    clips them. The scale is 2^−126 where `clip` is 0, and 1 for unscaled formats.
    """
    clip = jnp.minimum(clip, _LARGEST_CLIP)
    doubled = _with_exponent(_with_exponent(clip, 0) / row.largest, _SMALLEST_SCALE_EXPONENT)
    smallest = jnp.where(clip > 0, doubled, 2.0**_SMALLEST_SCALE_EXPONENT)
    return jnp.where(row.scaled, jnp.maximum(clip / row.largest, smallest), 1.0)


def quantize(x: jax.typing.ArrayLike, fmt: str, *, clip: jax.typing.ArrayLike | None = None) -> jax.Array:
    """Quantises `x` to a number format and dequantises it (FLIQS, Q of Eq. 4).

    Args:
      x: float32, or bfloat16 or float16, any shape.
      fmt: name of the format, as in `formats.parse_format`.
      clip: clip threshold, the value of the format's largest code; broadcasts to the shape of `x`. Unscaled formats
        (bf16, fp32) ignore it. The largest finite magnitude of `x` if None.

    Returns:
      float32 of the shape of `x`: the nearest values, ties to even, saturating; NaN stays NaN. Every finite `x` and
      `clip` gives finite values, all of them zero if `clip` is 0. Where `clip` is so small that the scale would be
      subnormal, values are off by less than 2^−125. Hardware may flush values below 2^−126 to zero.

    Raises:
      UnknownFormatError: `fmt` is no number format.
      ValueError: `clip` is negative, infinite or NaN, or does not broadcast to the shape of `x`.
    """
    values, scale = quantize_to_grid(x, fmt, clip=clip)
    return values * scale if parse_format(fmt).scaled else values


def quantize_to_grid(
    x: jax.typing.ArrayLike, fmt: str, *, clip: jax.typing.ArrayLike | None = None
) -> tuple[jax.Array, jax.Array]:
    """The values x_q of the format (FLIQS, Eq. 10) and their scale, both float32; `quantize` returns the product.

    Arguments and errors are those of `quantize`. Values have the shape of `x`, the scale that of `clip`; see
    `scale_for` for that of a small `clip`.
    """
    parsed = parse_format(fmt)
    row = format_table([parsed], [1.0]).row(0)
    values = jnp.asarray(x, jnp.float32)
    if not parsed.scaled:  # Dividing by 1 would flush subnormals on some hardware.
        return round_to_grid(values, row), jnp.ones(())
    if clip is not None:
        if not isinstance(clip, jax.core.Tracer) and not _all_magnitudes(clip):
            raise ValueError(f"clip {clip}: expected the finite magnitude that the largest code of {fmt} stands for")
        clip = jnp.asarray(clip, jnp.float32)
        if not _broadcasts_to(clip.shape, values.shape):
            raise ValueError(f"clip of shape {clip.shape} does not broadcast to the shape {values.shape} of x")
    return _quantize_to_grid(values, clip, row)


@jax.jit
def _quantize_to_grid(x: jax.Array, clip: jax.Array | None, row: FormatTable) -> tuple[jax.Array, jax.Array]:
    if clip is None:
        clip = jnp.max(jnp.abs(x), initial=0.0, where=jnp.isfinite(x))
    scale = scale_for(row, clip)
    # Compilers divide by a scalar by multiplying with its reciprocal, which is subnormal above 2^126.
    unit = jnp.where(scale > 2.0**126, 0.25, 1.0)
    return round_to_grid(saturate(x, -clip, clip) * unit / (scale * unit), row), scale


def _all_magnitudes(clip: jax.typing.ArrayLike) -> bool:
    """Whether all values are finite as float32, and none is negative."""
    with np.errstate(over="ignore"):
        values = np.asarray(clip).astype(np.float32)
    return bool(np.all(np.isfinite(values) & (values >= 0)))


def _broadcasts_to(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    return len(shape) <= len(target) and all(
        n in (1, m) for n, m in zip(reversed(shape), reversed(target), strict=False)
    )
