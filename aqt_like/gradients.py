"""Gradient estimators: fake quantisation with a gradient for training.

All estimators return the same values, those of `numerics.quantize`, bit for bit; they differ in the gradient of `x`.
None passes a gradient to `clip`. Each is a function of

    x: float32, any shape.
    row: the format, as scalars.
    clip: float32 clip threshold, the value of the format's largest code; broadcasts against `x`.

and returns float32 of the shape of `x`. `interception.Quantizer.estimator` takes one.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from aqt_like import numerics
from aqt_like.formats import FormatTable

Estimator = Callable[[jax.Array, FormatTable, jax.Array], jax.Array]


def straight_through(x: jax.Array, row: FormatTable, clip: jax.Array) -> jax.Array:
    """The straight-through estimator: fake quantisation (FLIQS, Eq. 10, 11) with gradient 1 in range, else 0."""
    scale = lax.stop_gradient(numerics.scale_for(row, clip))
    clipped = _clipped(x, row, scale)
    return _with_gradient_of(clipped, _rounded(clipped, row, scale))


def ewgs(strength: float) -> Estimator:
    """Element-wise gradient scaling: `straight_through` with each gradient g multiplied by a factor.

    The factor is 1 + strength · sign(g) · (x − q), with x and its quantised value q in units of the clip range.

    Source: Network Quantization with Element-wise Gradient Scaling (Lee et al., 2021), Eq. 6.
    """

    def estimator(x: jax.Array, row: FormatTable, clip: jax.Array) -> jax.Array:
        scale = lax.stop_gradient(numerics.scale_for(row, clip))
        clipped = _clipped(x, row, scale)
        rounded = _rounded(clipped, row, scale)
        distance = lax.stop_gradient((clipped - rounded) / ((row.largest - row.lowest) * scale))
        return _with_gradient_of(_clipped(_scale_gradient(x, strength * distance), row, scale), rounded)

    return estimator


def _clipped(x: jax.Array, row: FormatTable, scale: jax.Array) -> jax.Array:
    return numerics.saturate(x, row.lowest * scale, row.largest * scale)


def _rounded(clipped: jax.Array, row: FormatTable, scale: jax.Array) -> jax.Array:
    clipped, scale = lax.stop_gradient((clipped, scale))
    return numerics.round_within_range(clipped / scale, row) * scale


def _with_gradient_of(surrogate: jax.Array, value: jax.Array) -> jax.Array:
    """`value`, bit for bit, with the gradient of `surrogate`, which must be finite.

    A zero with a gradient is used instead of a `custom_vjp`: XLA's CPU backend then keeps the quantised input for the
    weight gradient instead of recomputing it (`benchmarks/quantizers.py` compares both). The zero is subtracted, so
    that −0 stays −0.
    """
    return value - (lax.stop_gradient(surrogate) - surrogate)


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
