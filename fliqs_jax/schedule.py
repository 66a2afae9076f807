"""Schedules of the entropy weight β_H over search progress `s` in [0, 1]: warm-up's end is 0, training's end is 1."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Scalar = jax.Array | float
EntropySchedule = Callable[[jax.Array, Scalar], jax.Array]


def cosine(s: jax.Array, end: Scalar) -> jax.Array:
    """end · (1 − cos πs) / 2 (FLIQS, Eq. 9): free exploration first, a settled policy at the end."""
    return end * (1 - jnp.cos(jnp.pi * s)) / 2


def linear(s: jax.Array, end: Scalar) -> jax.Array:
    """end · s."""
    return end * s


def constant(s: jax.Array, end: Scalar) -> jax.Array:
    """end."""
    return end * jnp.ones_like(s)


def none(s: jax.Array, end: Scalar) -> jax.Array:
    """0: no entropy regularisation."""
    del end
    return jnp.zeros_like(s)


ENTROPY_SCHEDULES: dict[str, EntropySchedule] = {
    "cosine": cosine,
    "linear": linear,
    "constant": constant,
    "none": none,
}
