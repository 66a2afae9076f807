"""The one cost mechanism: a sum, or the peak, over layers of values that depend on a few decisions each.

A cost model *builds* a table once, on the host, in NumPy float64; *pricing* a genome is one gather and one sum, under
jit and vmap alike.
"""

import functools
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
      peak: whether the total is the largest of the terms instead of their sum.
    """

    flat: np.ndarray
    offset: np.ndarray
    decision: np.ndarray
    stride: np.ndarray
    peak: bool = False


class Budget(NamedTuple):
    """A cost that a genome should have: `target`, in the unit of `table`."""

    table: CostTable
    target: float


def build(space: SearchSpace, terms: Sequence[Term], *, peak: bool = False) -> CostTable:
    """Flattens `terms` for genomes of `space`; see `CostTable` for `peak`.

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
    return CostTable(np.concatenate(flat), np.asarray(offset, np.int32), decision, stride, peak)


def price(table: CostTable, genome: jax.Array) -> jax.Array:
    """Total cost of a genome, `int32[D]` → float32 scalar. Jit it, vmap it over populations."""
    flat = jnp.asarray(table.flat, jnp.float32)
    # Term by term, not in one gather: under vmap each is then a gather along the population, several times as fast.
    terms = [
        flat[offset + sum(int(s) * genome[d] for d, s in zip(decision, stride, strict=True) if s)]
        for offset, decision, stride in zip(table.offset, table.decision, table.stride, strict=True)
    ]
    return functools.reduce(jnp.maximum if table.peak else jnp.add, terms)


def price_relative(budgets: Sequence[Budget], genome: jax.Array) -> jax.Array:
    """Cost over target of the budget that a genome exceeds most, or comes nearest to: float32 scalar."""
    return jnp.max(jnp.stack([price(budget.table, genome) / budget.target for budget in budgets]))


def price_layers(table: CostTable, genome: np.ndarray) -> np.ndarray:
    """Cost of each term under a genome, on the host: float64[L]."""
    return table.flat[table.offset + (table.stride * np.asarray(genome)[table.decision]).sum(axis=1)]


def price_exactly(table: CostTable, genome: np.ndarray) -> float:
    """Total cost of a genome, on the host in float64."""
    terms = price_layers(table, genome)
    return float(terms.max() if table.peak else terms.sum())


def reachable_interval(table: CostTable, space: SearchSpace) -> tuple[float, float]:
    """Bounds on the cost of any genome; exact where each term depends on one decision.

    Terms that share a decision are added up before the extremes are taken. Where a term depends on several decisions,
    its own extremes are used: no genome lies outside the interval, though its ends may not be attained.
    """
    lowest = highest = 0.0
    add = np.maximum if table.peak else np.add
    per_decision = [np.zeros(len(d.options)) for d in space.decisions]
    ends = [*table.offset[1:], len(table.flat)]
    for start, end, decision, stride in zip(table.offset, ends, table.decision, table.stride, strict=True):
        values = table.flat[start:end]
        used = np.flatnonzero(stride)
        if len(used) == 1:
            per_decision[decision[used[0]]] = add(per_decision[decision[used[0]]], values)
        else:
            lowest, highest = add(lowest, values.min()), add(highest, values.max())
    for values in per_decision:
        lowest, highest = add(lowest, values.min()), add(highest, values.max())
    return float(lowest), float(highest)
