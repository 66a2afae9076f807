"""Selection of parents: the fittest genomes (APQ, Algorithm 1), or the Pareto front of fitness and costs (NSGA-II)."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

Select = Callable[[jax.Array, jax.Array, int], jax.Array]
"""(fitness float32[N], costs float32[N, M], count) → int32[count], indices of the genomes to keep."""


def fittest(fitness: jax.Array, costs: jax.Array, count: int) -> jax.Array:
    """The `count` genomes of highest fitness, in descending order (top-k in APQ, Algorithm 1)."""
    del costs
    return jax.lax.top_k(fitness, count)[1]


def nsga2(fitness: jax.Array, costs: jax.Array, count: int) -> jax.Array:
    """Selection of NSGA-II: by front of fitness and all costs, and within a front by descending crowding distance.

    One evolution then ends with a whole Pareto front, which `on_front` picks out.
    """
    front = fronts(fitness, costs)
    objectives = jnp.concatenate([fitness[:, None], -costs], axis=1)
    distance = sum(_crowding(front, objectives[:, k]) for k in range(objectives.shape[1]))
    return jnp.lexsort((-distance, front))[:count]


SELECTIONS: Mapping[str, Select] = {"fittest": fittest, "nsga2": nsga2}


def on_front(fitness: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """bool[N]: which genomes of finite fitness are on the Pareto front of fitness and all costs."""
    return np.isfinite(fitness) & (np.asarray(fronts(jnp.asarray(fitness), jnp.asarray(costs))) == 0)


def fronts(fitness: jax.Array, costs: jax.Array) -> jax.Array:
    """int32[N]: 0 for the Pareto front of fitness and all costs, 1 for the front without those genomes, and so on.

    Args:
      fitness: float32[N].
      costs: float32[N, M].
    """
    objectives = jnp.concatenate([fitness[:, None], -costs], axis=1)
    row, column = objectives[:, None], objectives[None, :]
    dominates = (row >= column).all(axis=-1) & (row > column).any(axis=-1)

    def peel(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        number, front = carry
        remaining = front < 0
        undominated = remaining & ~(dominates & remaining[:, None]).any(axis=0)
        return number + 1, jnp.where(undominated, number, front)

    start = (jnp.int32(0), jnp.full(fitness.shape, -1, jnp.int32))
    return jax.lax.while_loop(lambda carry: (carry[1] < 0).any(), peel, start)[1]


def _crowding(front: jax.Array, values: jax.Array) -> jax.Array:
    """Crowding distance, float32[N]: between the neighbours on a front, relative to the range; infinite at its ends."""
    finite = jnp.where(jnp.isfinite(values), values, 0)
    order = jnp.lexsort((finite, front))
    number, sorted_values = front[order], finite[order]
    inner = (number[2:] == number[1:-1]) & (number[:-2] == number[1:-1])
    gaps = (sorted_values[2:] - sorted_values[:-2]) / jnp.maximum(jnp.ptp(finite), 1e-30)
    return jnp.zeros_like(finite).at[order].set(jnp.pad(jnp.where(inner, gaps, jnp.inf), 1, constant_values=jnp.inf))
