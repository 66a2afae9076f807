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
    """Crowding distance by one objective, float32[N]: the gap between the neighbours on a front, relative to its range.

    It is infinite at the ends of a front (Deb et al., 2002, III-B). Values that are not finite, as of repeated genomes,
    count as the lowest on their front.
    """
    size = len(values)
    finite = jnp.isfinite(values)
    low = jax.ops.segment_min(jnp.where(finite, values, jnp.inf), front, size)
    high = jax.ops.segment_max(jnp.where(finite, values, -jnp.inf), front, size)
    low, width = jnp.where(jnp.isfinite(low), low, 0.0), jnp.maximum(high - low, 1e-30)
    shares = jnp.where(finite, (values - low[front]) / width[front], 0.0)
    order = jnp.lexsort((shares, front))
    number, ordered = front[order], shares[order]
    inner = (number[2:] == number[1:-1]) & (number[:-2] == number[1:-1])
    gaps = jnp.where(inner, ordered[2:] - ordered[:-2], jnp.inf)
    return jnp.zeros(size).at[order].set(jnp.pad(gaps, 1, constant_values=jnp.inf))
