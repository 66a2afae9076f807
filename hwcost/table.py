"""The one cost mechanism: a sum over layers of values that depend on a few decisions each.

A cost model *builds* a table once, on the host, in NumPy float64; *pricing* a genome is one gather and one sum, under
jit and vmap alike.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hwcost.space import SearchSpace


class Term(NamedTuple):
    """One layer's cost: `values` has an axis per decision in `decisions`, indexed by that decision's option."""

    decisions: tuple[str, ...]
    values: np.ndarray


class CostTable(NamedTuple):
    """Terms, flattened. `cost(g) = Σ_l flat[offset[l] + Σ_k stride[l, k] · g[decision[l, k]]]`.

    Attributes:
      flat: float64[N] on the host, float32[N] in JAX.
      offset: int32[L].
      decision: int32[L, K], positions in the genome; unused places have stride 0.
      stride: int32[L, K].
    """

    flat: np.ndarray
    offset: np.ndarray
    decision: np.ndarray
    stride: np.ndarray


def build(space: SearchSpace, terms: Sequence[Term]) -> CostTable:
    """Flattens `terms` for genomes of `space`.

    Raises:
      ValueError: values whose shape does not match their decisions' numbers of options, or that are not finite.
    """
    width = max(len(term.decisions) for term in terms)
    decision = np.zeros((len(terms), width), np.int32)
    stride = np.zeros((len(terms), width), np.int32)
    flat, offset, size = [], [], 0
    for row, term in enumerate(terms):
        values = np.asarray(term.values, np.float64)
        positions = [space.index(name) for name in term.decisions]
        expected = tuple(len(space.decisions[p].options) for p in positions)
        if values.shape != expected:
            raise ValueError(f"cost of {term.decisions}: shape {values.shape}, expected {expected}")
        if not np.isfinite(values).all():
            raise ValueError(f"cost of {term.decisions}: a value that is not finite")
        decision[row, : len(positions)] = positions
        stride[row, : len(positions)] = [int(np.prod(expected[k + 1 :])) for k in range(len(expected))]
        offset.append(size)
        flat.append(values.ravel())
        size += values.size
    return CostTable(np.concatenate(flat), np.asarray(offset, np.int32), decision, stride)


def price(table: CostTable, genome: jax.Array) -> jax.Array:
    """Total cost of a genome, `int32[D]` → float32 scalar. Jit it, vmap it over populations."""
    return jnp.sum(_gather(jnp.asarray(table.flat, jnp.float32), table, genome))


def price_layers(table: CostTable, genome: np.ndarray) -> np.ndarray:
    """Cost of each term under a genome, on the host: float64[L]. Its sum is the exact total."""
    return _gather(table.flat, table, np.asarray(genome))


def _gather(flat, table: CostTable, genome):  # noqa: ANN001, ANN202 (NumPy or JAX arrays alike)
    return flat[table.offset + (table.stride * genome[table.decision]).sum(axis=1)]


def reachable_interval(table: CostTable, space: SearchSpace) -> tuple[float, float]:
    """Bounds on the cost of any genome; exact where each term depends on one decision.

    Terms that share a decision are added up before the extremes are taken. Where a term depends on several decisions,
    its own extremes are used: no genome lies outside the interval, though its ends may not be attained.
    """
    lowest = highest = 0.0
    per_decision = [np.zeros(len(d.options)) for d in space.decisions]
    ends = [*table.offset[1:], len(table.flat)]
    for start, end, decision, stride in zip(table.offset, ends, table.decision, table.stride, strict=True):
        values = table.flat[start:end]
        used = np.flatnonzero(stride)
        if len(used) == 1:
            per_decision[decision[used[0]]] += values
        else:
            lowest, highest = lowest + values.min(), highest + values.max()
    return (
        float(lowest + sum(v.min() for v in per_decision)),
        float(highest + sum(v.max() for v in per_decision)),
    )
