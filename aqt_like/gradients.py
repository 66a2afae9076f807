"""Gradient estimators: quantisation with a gradient for training.

An estimator gives the codes of a tensor and their scale, or, called, their product: fake quantisation (FLIQS, Eq. 10,
11). All estimators give the same values; they differ in the gradient of `x`. None passes a gradient to `clip` or
through the scale. Arguments:

    x: float32, any shape.
    row: the format, as scalars.
    clip: float32 clip threshold, the value of the format's largest code; broadcasts against `x`.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from aqt_like import numerics
from aqt_like.formats import FormatTable


class Codes(NamedTuple):
    """A quantised tensor, `values · scale`.

    Attributes:
      values: float32 of the shape of the tensor: values of the format; those of e5mY, e6mY and e7mY times a power of
        two.
      scale: float32 of the shape of the clip threshold.
    """

    values: jax.Array
    scale: jax.Array


@dataclasses.dataclass(frozen=True)
class Estimator:
    """A gradient estimator.

    Attributes:
      codes: `(x, row, clip) -> Codes`.
    """

    codes: Callable[[jax.Array, FormatTable, jax.Array], Codes]

    def __call__(self, x: jax.Array, row: FormatTable, clip: jax.Array) -> jax.Array:
        """The fake-quantised `x`, float32 of its shape."""
        values, scale = self.codes(x, row, clip)
        return values * scale


def _straight_through_codes(x: jax.Array, row: FormatTable, clip: jax.Array) -> Codes:
    row, scale, bound = code_grid(row, clip)
    clipped = _saturated(x, row, bound)
    rounded = numerics.round_within_range(lax.stop_gradient(clipped) / scale, row)
    return Codes(_with_gradient_of(clipped, rounded, scale), scale)


straight_through = Estimator(_straight_through_codes)
"""The straight-through estimator (FLIQS, Eq. 10, 11): the gradient is 1 up to the clip threshold, else 0."""


def ewgs(strength: float) -> Estimator:
    """Element-wise gradient scaling: `straight_through` with each gradient g multiplied by a factor.

    The factor is 1 + strength · sign(g) · (x − q), with x and its quantised value q in units of the clip range.

    Source: Network Quantization with Element-wise Gradient Scaling (Lee et al., 2021), Eq. 6.
    """

    def codes(x: jax.Array, row: FormatTable, clip: jax.Array) -> Codes:
        row, scale, bound = code_grid(row, clip)
        units = lax.stop_gradient(_saturated(x, row, bound) / scale)
        rounded = numerics.round_within_range(units, row)
        distance = (units - rounded) / (row.largest - row.lowest)
        surrogate = _saturated(_scale_gradient(x, strength * distance), row, bound)
        return Codes(_with_gradient_of(surrogate, rounded, scale), scale)

    return Estimator(codes)


_SMALLEST_SCALE = 2.0**-126


def code_grid(row: FormatTable, clip: jax.Array) -> tuple[FormatTable, jax.Array, jax.Array]:
    """The format with codes in the range of products, their scale, and the largest magnitude of `x` that is kept.

    A threshold of 0, as of a kernel of zeros, has the scale 1, so that gradients stay in range. Scales are at
    least 2^−126, a normal float32: below thresholds of 2^−93 the grid of a float format is not that of
    `numerics.scale_for`, which costs more.
    """
    # For e5mY, e6mY and e7mY, so that codes end near 2^8: products stay in range, and scales far from underflow.
    shift = jnp.where(row.largest > 2.0**40, 56, jnp.where(row.largest > 2.0**20, 24, 8))
    shift = jnp.where(row.scaled & (row.largest >= 2.0**15), shift, 0)
    factor = jnp.where(shift == 56, 2.0**-56, jnp.where(shift == 24, 2.0**-24, jnp.where(shift == 8, 2.0**-8, 1.0)))
    row = row._replace(
        smallest_exponent=row.smallest_exponent - shift,
        largest=row.largest * factor,
        lowest=row.lowest * factor,
    )
    clip = lax.stop_gradient(clip)
    bound = jnp.where(row.scaled & (clip > 0), clip, row.largest)
    scale = jnp.where(row.scaled, jnp.maximum(bound / row.largest, _SMALLEST_SCALE), 1.0)
    return row, scale, bound


def _saturated(x: jax.Array, row: FormatTable, bound: jax.Array) -> jax.Array:
    return numerics.saturate(x, jnp.where(row.lowest < 0, -bound, 0.0), bound)


def _with_gradient_of(surrogate: jax.Array, codes: jax.Array, scale: jax.Array) -> jax.Array:
    """`codes`, bit for bit, with the gradient of `surrogate / scale`; the surrogate must be finite.

    A zero with a gradient is used instead of a `custom_vjp`: XLA's CPU backend then keeps the quantised input for the
    weight gradient instead of recomputing it (`benchmarks/quantizers.py` compares both). The zero is subtracted, so
    that −0 stays −0, and divided by the scale afterwards: of the difference of two quotients, compilers may fuse one
    (FMA), which leaves its rounding error.
    """
    return codes - (lax.stop_gradient(surrogate) - surrogate) / scale


@jax.custom_vjp
def _scale_gradient(x: jax.Array, signed_factor: jax.Array) -> jax.Array:
    """Returns `x`; its gradient g is multiplied by 1 + sign(g) · signed_factor."""
    del signed_factor
    return x


def _scale_gradient_forward(x: jax.Array, signed_factor: jax.Array) -> tuple[jax.Array, jax.Array]:
    return x, signed_factor


def _scale_gradient_backward(signed_factor: jax.Array, g: jax.Array) -> tuple[jax.Array, None]:
    return g * (1 + jnp.sign(g) * signed_factor), None


_scale_gradient.defvjp(_scale_gradient_forward, _scale_gradient_backward)
