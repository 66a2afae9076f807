"""Which genomes evolution keeps: the fittest, as the paper does, or those on the front of fitness and costs."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

Select = Callable[[jax.Array, jax.Array, int], jax.Array]
"""Fitness float32[N], costs float32[N, M] and how many to keep → int32[that many], which genomes to keep."""


def fittest(fitness: jax.Array, costs: jax.Array, count: int) -> jax.Array:
    """The paper's selection: those of highest fitness, in descending order."""
    del costs
    return jax.lax.top_k(fitness, count)[1]


def nsga2(fitness: jax.Array, costs: jax.Array, count: int) -> jax.Array:
    """NSGA-II's selection: fronts of fitness against all costs, and of the last front those that stand most alone.

    One evolution then ends with a whole front; `on_front` tells what is on it.
    """
    front = fronts(fitness, costs)
    objectives = jnp.concatenate([fitness[:, None], -costs], axis=1)
    distance = sum(_crowding(front, objectives[:, k]) for k in range(objectives.shape[1]))
    return jnp.lexsort((-distance, front))[:count]


SELECTIONS: Mapping[str, Select] = {"fittest": fittest, "nsga2": nsga2}


def on_front(fitness: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """bool[N]: which of those found, whose fitness is finite, no other one beats in fitness and all costs."""
    return np.isfinite(fitness) & (np.asarray(fronts(jnp.asarray(fitness), jnp.asarray(costs))) == 0)


def fronts(fitness: jax.Array, costs: jax.Array) -> jax.Array:
    """int32[N]: 0 where no other genome is as good in fitness and all costs and better in one, 1 without those, …

    Args:
      fitness: float32[N].
      costs: float32[N, M].
    """
    objectives = jnp.concatenate([fitness[:, None], -costs], axis=1)
    one, other = objectives[:, None], objectives[None, :]
    dominates = (one >= other).all(axis=-1) & (one > other).any(axis=-1)

    def peel(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        number, front = carry
        left = front < 0
        bare = left & ~(dominates & left[:, None]).any(axis=0)
        return number + 1, jnp.where(bare, number, front)

    start = (jnp.int32(0), jnp.full(fitness.shape, -1, jnp.int32))
    return jax.lax.while_loop(lambda carry: (carry[1] < 0).any(), peel, start)[1]


def _crowding(front: jax.Array, values: jax.Array) -> jax.Array:
    """Distance between the two neighbours on the same front, over the range of all; infinite at the ends."""
    finite = jnp.where(jnp.isfinite(values), values, 0)
    order = jnp.lexsort((finite, front))
    number, sorted_values = front[order], finite[order]
    inner = (number[2:] == number[1:-1]) & (number[:-2] == number[1:-1])
    gaps = (sorted_values[2:] - sorted_values[:-2]) / jnp.maximum(jnp.ptp(finite), 1e-30)
    return jnp.zeros_like(finite).at[order].set(jnp.pad(jnp.where(inner, gaps, jnp.inf), 1, constant_values=jnp.inf))
