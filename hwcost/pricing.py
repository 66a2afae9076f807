"""Pricing of genomes: the sum, or the peak, over layers of costs that depend on a few decisions each.

A cost model builds a table once, on the host, in NumPy float64. Pricing a genome is a gather and a sum (Σ_l C_l of
FLIQS, Eq. 1; the lookup of APQ, §3.3), which can be jitted and vmapped.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hwcost.space import SearchSpace


class Term(NamedTuple):
    """The cost of a layer: `values`, float64, has one axis per decision in `decisions`, indexed by its option."""

    decisions: tuple[str, ...]
    values: np.ndarray


class CostTable(NamedTuple):
    """The terms of L layers, flattened: `cost(g) = Σ_l flat[offset[l] + Σ_k stride[l, k] · g[decision[l, k]]]`.

    Attributes:
      flat: float64[N] on the host, float32[N] in JAX: the values of all terms.
      offset: int32[L], position of each term in `flat`.
      decision: int32[L, K], positions in the genome; unused entries have stride 0.
      stride: int32[L, K].
      peak: whether the total is the largest term instead of the sum.
    """

    flat: np.ndarray
    offset: np.ndarray
    decision: np.ndarray
    stride: np.ndarray
    peak: bool = False


class Budget(NamedTuple):
    """A cost target: `target`, in the unit of `table` (C_T of FLIQS, Eq. 1; the constraint C of APQ, Algorithm 1)."""

    table: CostTable
    target: float


def build(space: SearchSpace, terms: Sequence[Term], *, peak: bool = False) -> CostTable:
    """The cost table of `terms` for genomes of `space`; see `CostTable` for `peak`.

    Raises:
      ValueError: values do not have the shape of their decisions' option counts, or are not finite.
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
    """Total cost of a genome, int32[D]: float32 scalar, Σ_l C_l(α) of FLIQS, Eq. 1. It can be jitted and vmapped."""
    flat = jnp.asarray(table.flat, jnp.float32)
    # One gather per term: under vmap, each gathers along the population, which is several times as fast as one gather.
    terms = [
        flat[offset + sum(int(s) * genome[d] for d, s in zip(decision, stride, strict=True) if s)]
        for offset, decision, stride in zip(table.offset, table.decision, table.stride, strict=True)
    ]
    return functools.reduce(jnp.maximum if table.peak else jnp.add, terms)


def price_relative(budgets: Sequence[Budget], genome: jax.Array) -> jax.Array:
    """Largest ratio of cost to target over the budgets, Σ_l C_l(α) / C_T of FLIQS, Eq. 1: float32 scalar."""
    return jnp.max(jnp.stack([price(budget.table, genome) / budget.target for budget in budgets]))


def price_layers(table: CostTable, genome: np.ndarray) -> np.ndarray:
    """Cost of each term for a genome, int32[D], on the host: float64[L]; of genomes `[…, D]`, float64[…, L]."""
    return table.flat[table.offset + (table.stride * np.asarray(genome)[..., table.decision]).sum(axis=-1)]


def price_exactly(table: CostTable, genome: np.ndarray) -> float:
    """Total cost of a genome, int32[D], on the host in float64."""
    terms = price_layers(table, genome)
    return float(terms.max() if table.peak else terms.sum())


def check_total(name: str, lowest: float, highest: float) -> None:
    """Checks that genomes can be priced in float32, given the bounds of `reachable_interval`.

    Raises:
      ValueError: some cost less than 0, all of them nothing, or some too much; the message has the name of the cost.
    """
    smallest, largest = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
    if lowest < 0:
        raise ValueError(f"cost {name!r}: genomes cost from {lowest:g}: expected no negative costs")
    if not smallest <= highest <= largest:
        told = f"genomes cost up to {highest:g}" if highest else "nothing costs anything"
        raise ValueError(f"cost {name!r}: {told}: expected {smallest:.1e} to {largest:.1e} for the dearest genome")


def reachable_interval(table: CostTable, space: SearchSpace) -> tuple[float, float]:
    """Lower and upper bound on the cost of all genomes; exact if each term depends on one decision.

    Terms that depend on the same single decision are added before their extremes are taken. A term that depends on
    several decisions contributes its own extremes, so that the bounds hold, but may not be reached.
    """
    lowest = highest = 0.0
    add = np.maximum if table.peak else np.add
    per_decision = [np.zeros(len(d.options)) for d in space.decisions]
    ends = [*table.offset[1:], len(table.flat)]
    for start, end, decision, stride in zip(table.offset, ends, table.decision, table.stride, strict=True):
        values = table.flat[start:end]
        axes = np.flatnonzero(stride)
        if len(axes) == 1:
            per_decision[decision[axes[0]]] = add(per_decision[decision[axes[0]]], values)
        else:
            lowest, highest = add(lowest, values.min()), add(highest, values.max())
    for values in per_decision:
        lowest, highest = add(lowest, values.min()), add(highest, values.max())
    return float(lowest), float(highest)
