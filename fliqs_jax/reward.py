"""Rewards: quality against relative cost. Each is a function `(quality, relative_cost, gamma) -> reward` of scalars.

`relative_cost` is cost / target, and `gamma` > 0 says how much a relative excess weighs.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Scalar = jax.Array | float
Reward = Callable[[jax.Array, jax.Array, Scalar], jax.Array]


def absolute(quality: jax.Array, relative_cost: jax.Array, gamma: Scalar) -> jax.Array:
    """Q − γ·|C/C_T − 1| (FLIQS, Eq. 1; TuNAS): misses on either side cost alike."""
    return quality - gamma * jnp.abs(relative_cost - 1)


def one_sided(quality: jax.Array, relative_cost: jax.Array, gamma: Scalar) -> jax.Array:
    """Q − γ·max(C/C_T − 1, 0): being cheaper than the target is neither punished nor rewarded."""
    return quality - gamma * jnp.maximum(relative_cost - 1, 0)


def soft_exponential(quality: jax.Array, relative_cost: jax.Array, gamma: Scalar) -> jax.Array:
    """Q · (C/C_T)^−γ (MnasNet, soft constraint): cost is traded at a fixed rate on both sides of the target."""
    return quality * relative_cost**-gamma


def hard_exponential(quality: jax.Array, relative_cost: jax.Array, gamma: Scalar) -> jax.Array:
    """Q · max(C/C_T, 1)^−γ (MnasNet, hard constraint): only an excess is punished."""
    return quality * jnp.maximum(relative_cost, 1.0) ** -gamma


REWARDS: dict[str, Reward] = {
    "absolute": absolute,
    "one_sided": one_sided,
    "soft_exponential": soft_exponential,
    "hard_exponential": hard_exponential,
}
