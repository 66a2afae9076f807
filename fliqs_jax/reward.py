"""Reward functions `(quality, relative_cost, gamma) -> reward` of scalars.

`relative_cost` is C / C_T, cost over target, and `gamma` > 0 is the weight of the cost.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Scalar = jax.Array | float
Reward = Callable[[jax.Array, jax.Array, Scalar], jax.Array]


def absolute(quality: jax.Array, relative_cost: jax.Array, gamma: Scalar) -> jax.Array:
    """Absolute reward Q − γ·|C/C_T − 1|: penalises deviations from the target on both sides.

    (FLIQS, Eq. 1, which prints +γ, that is, a negative γ; TuNAS.)
    """
    return quality - gamma * jnp.abs(relative_cost - 1)


def one_sided(quality: jax.Array, relative_cost: jax.Array, gamma: Scalar) -> jax.Array:
    """Reward Q − γ·max(C/C_T − 1, 0): penalises only a cost above the target."""
    return quality - gamma * jnp.maximum(relative_cost - 1, 0)


def soft_exponential(quality: jax.Array, relative_cost: jax.Array, gamma: Scalar) -> jax.Array:
    """Reward Q · (C/C_T)^−γ (MnasNet, soft constraint): trades cost at a fixed rate on both sides of the target."""
    return quality * relative_cost**-gamma


def hard_exponential(quality: jax.Array, relative_cost: jax.Array, gamma: Scalar) -> jax.Array:
    """Reward Q · max(C/C_T, 1)^−γ (MnasNet, hard constraint): penalises only a cost above the target."""
    return quality * jnp.maximum(relative_cost, 1.0) ** -gamma


REWARDS: dict[str, Reward] = {
    "absolute": absolute,
    "one_sided": one_sided,
    "soft_exponential": soft_exponential,
    "hard_exponential": hard_exponential,
}
