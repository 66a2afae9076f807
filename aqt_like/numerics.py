"""Rounding to any number format with traced parameters, and the straight-through gradient. Nothing here branches."""

import jax
import jax.numpy as jnp
from jax import lax

from aqt_like import formats
from aqt_like.formats import FormatTable

_SIGN_BIT = -(2**31)
_INFINITY_BITS = 0x7F800000
_EXPONENT_BIAS = 127
_FRACTION_BITS = 23


def _bits_of(x: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(x, jnp.int32)


def _float_of(bits: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(bits, jnp.float32)


def round_to_grid(x: jax.Array, row: FormatTable) -> jax.Array:
    """Rounds to the nearest value of a format, ties to even, saturating at its lowest and largest value.

    Below the format's smallest normal number the grid is evenly spaced: adding and subtracting 1.5 · 2^23 steps leaves
    a whole number of steps. From there on the grid is that of float32 with fewer fraction bits: the dropped bits are
    rounded in the integer representation, where a carry raises the exponent as it should. Integers use only the former,
    bf16 and fp32 only the latter, down to float32's own subnormals, which hardware may flush in arithmetic.

    Exact for every float32; NaN stays NaN and −0 stays −0.

    Args:
      x: float32, any shape, already in the format's units.
      row: the format, scalars or arrays that broadcast against `x`.

    Returns:
      float32 of the shape of `x`.
    """
    sign = _bits_of(x) & _SIGN_BIT
    bits = _bits_of(x) & ~_SIGN_BIT

    step_exponent = row.smallest_exponent - row.mantissa_bits
    magic = _float_of((_FRACTION_BITS + step_exponent + _EXPONENT_BIAS << _FRACTION_BITS) | 0x400000)
    evenly_spaced = (_float_of(bits) + magic) - magic

    dropped = _FRACTION_BITS - row.mantissa_bits
    below_half = jnp.maximum(((1 << dropped) >> 1) - 1, 0)
    odd = (bits >> dropped) & jnp.minimum(dropped, 1)
    shortened = (bits + below_half + odd) & -(1 << dropped)

    smallest_normal = jnp.where(row.scaled, (row.smallest_exponent + _EXPONENT_BIAS) << _FRACTION_BITS, 0)
    rounded = jnp.where(bits < smallest_normal, _bits_of(evenly_spaced), shortened)
    rounded = jnp.minimum(rounded, _bits_of(row.largest))
    rounded = jnp.where((sign != 0) & (row.lowest == 0), 0, rounded | sign)
    return _float_of(jnp.where(bits > _INFINITY_BITS, _bits_of(x), rounded))


def scale_for(row: FormatTable, clip: jax.Array) -> jax.Array:
    """What one unit of the format stands for, so that its largest value stands for `clip` (1 for unscaled formats).

    A clip threshold of zero (a tensor of zeros) gives the scale 1.
    """
    return jnp.where(row.scaled & (clip > 0), clip / row.largest, 1.0)


def fake_quantize(x: jax.Array, row: FormatTable, clip: jax.Array) -> jax.Array:
    """Quantises and dequantises (FLIQS, Eq. 10 and 11) with the straight-through estimator.

    The gradient with respect to `x` is 1 inside the clip range and 0 outside; none flows to `clip`.

    The estimator adds a constant, `c + stop_gradient(q − c)`, to the clipped but unscaled input, instead of being a
    `custom_vjp`: XLA's CPU backend then keeps the quantised input for the weight gradient and computes nothing again,
    which makes a search step faster than its fp32 counterpart (benchmarks/search_step.py). Adding in the scaled domain
    is slower and takes a third more memory. The sum equals `q` to the last place or but one.

    Args:
      x: float32, any shape.
      row: the format, as scalars.
      clip: float32, the value that the format's largest code stands for; broadcasts against `x`.

    Returns:
      float32 of the shape of `x`.
    """
    scale = lax.stop_gradient(scale_for(row, clip))
    clipped = jnp.clip(x, row.lowest * scale, row.largest * scale)
    quantized = round_to_grid(lax.stop_gradient(clipped) / scale, row) * scale
    return clipped + lax.stop_gradient(quantized - clipped)


def quantize(x: jax.typing.ArrayLike, fmt: str, *, clip: jax.typing.ArrayLike | None = None) -> jax.Array:
    """The values of `x` in a number format, dequantised: the plain entry, without gradient tricks or tables.

    Args:
      x: float32, or bfloat16 or float16, which are exact in float32, of any shape.
      fmt: name of the format, as in `formats.parse`.
      clip: the value that the format's largest code stands for, broadcasts against `x`; unscaled formats (bf16, fp32)
        ignore it. The largest finite magnitude of `x` if None.

    Returns:
      float32 of the shape of `x`: the nearest values, ties to even, saturating; NaN stays NaN.

    Raises:
      UnknownFormatError: no such format.
    """
    values, scale = quantize_to_grid(x, fmt, clip=clip)
    return values * scale if formats.parse(fmt).scaled else values


def quantize_to_grid(
    x: jax.typing.ArrayLike, fmt: str, *, clip: jax.typing.ArrayLike | None = None
) -> tuple[jax.Array, jax.Array]:
    """As `quantize`, but before the values are scaled back: values of the format, and what its unit stands for."""
    parsed = formats.parse(fmt)
    row = formats.format_table([parsed], [1.0]).row(0)
    values = jnp.asarray(x, jnp.float32)
    if not parsed.scaled:  # Not even divided by 1, which flushes subnormals on some hardware.
        return round_to_grid(values, row), jnp.ones(())
    if clip is None:
        clip = jnp.max(jnp.abs(values), initial=0.0, where=jnp.isfinite(values))
    scale = scale_for(row, jnp.asarray(clip, jnp.float32))
    return round_to_grid(values / scale, row), scale
