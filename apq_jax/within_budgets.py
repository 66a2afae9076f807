"""What is within budgets: the cheapest genome of a space, found on the host in float64, and the check of others.

Evolution starts from the cheapest, and repairs what is over budget (`evolution`).
"""

from collections.abc import Mapping
from typing import Any, Protocol

import jax
import numpy as np
from jax.typing import ArrayLike

from hwcost import pricing
from hwcost.pricing import CostTable
from hwcost.space import SearchSpace

Tables = Mapping[str, CostTable]


class BudgetError(ValueError):
    """No genome was found within the budgets."""


class Space(Protocol):
    """The search space that evolution needs, such as `apq_jax.architecture_space.ArchitectureSpace`."""

    @property
    def search_space(self) -> SearchSpace:
        """The D decisions."""
        ...

    @property
    def group(self) -> np.ndarray:
        """int32[D]: decisions that mutate together share a number; options of different groups combine freely."""
        ...

    @property
    def smallest(self) -> np.ndarray:
        """int32[D]: a valid genome, preferably a cheap one."""
        ...

    def is_valid(self, genome: Any) -> Any:
        """bool[...]: whether genomes, int32[..., D], are valid; a NumPy array for a NumPy array."""
        ...

    def sample(self, key: jax.Array) -> jax.Array:
        """A random valid genome, int32[D]."""
        ...

    def made_valid(self, genome: Any) -> jax.Array:
        """Valid genomes, int32[..., D], from genomes whose decisions each come from one of two valid genomes."""
        ...


def cheapest(space: Space, tables: Tables, limits: ArrayLike) -> np.ndarray:
    """A genome, int32[D], of least `max_m cost_m / limit_m`, by coordinate descent on the host in float64.

    Each step takes the best valid options of one group, until no group improves. With one budget the result is the
    optimum where what is cheapest in a group does not depend on the others, as in APQ's spaces. Else, or with several
    budgets, it need not be, and a genome within them may be missed.

    Args:
      space: the space.
      tables: M tables by name.
      limits: float[M], in the tables' units.

    Raises:
      BudgetError: no genome found is within the budgets; the message names the budget and the costs in reach.
    """
    limits = np.asarray(limits, np.float64)
    choices, genome = _choices(space), space.smallest
    for (name, table), limit in zip(tables.items(), limits, strict=True):
        genome = _descended(space.smallest, choices, [table], np.ones(1))
        lowest = pricing.price_exactly(table, genome)
        if not lowest <= limit:
            highest = pricing.price_exactly(table, _descended(space.smallest, choices, [table], -np.ones(1)))
            raise BudgetError(f"{name}: no genome is within {limit:g}, reachable is {lowest:g} to {highest:g}")
    if len(tables) > 1:
        genome = _descended(space.smallest, choices, list(tables.values()), 1 / np.maximum(limits, 1e-300))
    verify(tables, genome, limits)
    return genome


def verify(tables: Tables, genomes: np.ndarray, limits: ArrayLike) -> np.ndarray:
    """Costs of genomes, int32[..., D], on the host: float64[..., M].

    Raises:
      BudgetError: a cost exceeds its limit.
    """
    rows = genomes.reshape(-1, genomes.shape[-1])
    costs = np.asarray([[pricing.price_exactly(table, row) for table in tables.values()] for row in rows])
    for name, highest, limit in zip(tables, costs.max(axis=0), np.asarray(limits, np.float64), strict=True):
        if not highest <= limit:
            others = " together with the other budgets" if len(tables) > 1 else ""
            raise BudgetError(f"{name}: no genome was found within {limit:g}{others}, the nearest has {highest:g}")
    return costs.reshape(*genomes.shape[:-1], len(tables))


def _choices(space: Space) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each group its decisions, int32[k], and their C valid combinations, int32[C, k]."""
    choices = []
    for number in np.unique(space.group):
        columns = np.flatnonzero(space.group == number)
        options = np.indices(tuple(space.search_space.option_counts[columns])).reshape(len(columns), -1).T
        genomes = np.repeat(np.asarray(space.smallest)[None], len(options), axis=0)
        genomes[:, columns] = options
        choices.append((columns, genomes[np.asarray(space.is_valid(genomes))][:, columns]))
    return choices


def _descended(
    genome: np.ndarray, choices: list[tuple[np.ndarray, np.ndarray]], tables: list[CostTable], weights: np.ndarray
) -> np.ndarray:
    """Coordinate descent from `genome` on the largest weighted cost, with ties broken by the sum."""
    genome, least, before = np.array(genome), (np.inf, np.inf), None
    while least != before:
        before = least
        for columns, options in choices:
            costs = np.stack([_costs(table, genome, columns, options) for table in tables], axis=-1) * weights
            largest, total = costs.max(axis=-1), costs.sum(axis=-1)
            best = np.lexsort((total, largest))[0]
            if (largest[best], total[best]) < least:
                genome[columns], least = options[best], (largest[best], total[best])
    return genome


def _costs(table: CostTable, genome: np.ndarray, columns: np.ndarray, options: np.ndarray) -> np.ndarray:
    """Costs, float64[C], of a genome with each of `options`, int32[C, k], at the decisions `columns`."""
    add = np.maximum if table.peak else np.add
    touched = (np.isin(table.decision, columns) & (table.stride != 0)).any(axis=1)
    rest = pricing.price_layers(table, genome)[~touched]
    total = np.full(len(options), add.reduce(rest, initial=0.0))
    for row in np.flatnonzero(touched):
        place = np.full(len(options), table.offset[row])
        for decision, stride in zip(table.decision[row], table.stride[row], strict=True):
            column = np.flatnonzero(columns == decision)
            place += stride * (options[:, column[0]] if len(column) else genome[decision])
        total = add(total, table.flat[place])
    return total
