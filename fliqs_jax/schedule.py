"""Schedules of the entropy weight β_H (FLIQS, Eq. 8) over the progress s, 0…1 from warm-up to the end of training."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Scalar = jax.Array | float
EntropySchedule = Callable[[jax.Array, Scalar], jax.Array]


def cosine(s: jax.Array, end: Scalar) -> jax.Array:
    """Cosine schedule β_H = end · (1 − cos πs) / 2 (FLIQS, Eq. 9): explores first, settles the policy at the end."""
    return end * (1 - jnp.cos(jnp.pi * s)) / 2


def linear(s: jax.Array, end: Scalar) -> jax.Array:
    """Linear schedule β_H = end · s."""
    return end * s


def constant(s: jax.Array, end: Scalar) -> jax.Array:
    """Constant weight β_H = end."""
    return end * jnp.ones_like(s)


def none(s: jax.Array, end: Scalar) -> jax.Array:
    """Zero weight: no entropy regularisation."""
    del end
    return jnp.zeros_like(s)


ENTROPY_SCHEDULES: dict[str, EntropySchedule] = {
    "cosine": cosine,
    "linear": linear,
    "constant": constant,
    "none": none,
}
