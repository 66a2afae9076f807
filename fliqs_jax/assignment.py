"""Format assignment from layer sensitivities under a cost budget: baselines of FLIQS that need no training.

Greedy and knapsack assignment both assume that the losses of layers add up. They run once, on the host, in NumPy.
"""

from typing import NamedTuple

import numpy as np

from hwcost import pricing
from hwcost.format_plan import FormatPlan
from hwcost.pricing import CostTable

_MAX_PARTIAL_GENOMES = 50_000  # that the knapsack keeps after each decision


class Options(NamedTuple):
    """Loss and cost of each option of each decision, both float64[D, Kmax], infinite where there is no such option."""

    loss: np.ndarray
    cost: np.ndarray


def options(plan: FormatPlan, cost_table: CostTable, layer_losses: np.ndarray) -> Options:
    """Loss and cost of each option, summed over the layers that share a decision; `layer_losses` is float64[L, K].

    Raises:
      ValueError: the cost of a layer depends on several decisions, or the total cost is not a sum over layers.
    """
    if cost_table.peak:
        raise ValueError("the dearest layer alone makes the cost: only FLIQS searches such costs")
    if (np.count_nonzero(cost_table.stride, axis=1) > 1).any():
        raise ValueError("a layer's cost depends on several decisions: only FLIQS searches such costs")
    width = plan.format_of_option.shape[1]
    exists = np.arange(width) < plan.space.option_counts[:, None]
    loss, cost = np.where(exists, 0.0, np.inf), np.where(exists, 0.0, np.inf)
    for layer, decision in enumerate(plan.decision_of):
        loss[decision] += layer_losses[layer, plan.format_of_option[decision]]
    for option in range(width):
        genome = np.minimum(option, plan.space.option_counts - 1)
        priced = pricing.price_layers(cost_table, genome)
        np.add.at(cost[:, option], cost_table.decision[:, 0], priced)
    return Options(loss, np.where(exists, cost, np.inf))


def greedy(choices: Options, budget: float) -> np.ndarray:
    """Greedy genome: from the cheapest one on, repeatedly takes the affordable option that saves most loss per cost.

    Returns:
      int32[D].

    Raises:
      ValueError: the budget is below the cost of the cheapest genome.
    """
    genome = _cheapest_genome(choices, budget)
    rows = np.arange(len(genome))
    while True:
        saved = choices.loss[rows, genome][:, None] - choices.loss
        extra = choices.cost - choices.cost[rows, genome][:, None]
        room = budget - choices.cost[rows, genome].sum()
        possible = (saved > 0) & (extra <= room)
        if not possible.any():
            return genome
        with np.errstate(divide="ignore", invalid="ignore"):
            worth = np.where(possible, np.where(extra > 0, saved / extra, np.inf), -np.inf)
        decision, option = np.unravel_index(np.argmax(worth), worth.shape)
        genome[decision] = option


def knapsack(choices: Options, budget: float) -> np.ndarray:
    """Genome of the lowest total loss within the budget, by dynamic programming.

    After each decision the Pareto front of the partial genomes over cost and loss is kept. The result is exact as long
    as a front has at most 50,000 members; a larger one is thinned evenly over cost. The budget always holds.

    Returns:
      int32[D].

    Raises:
      ValueError: the budget is below the cost of the cheapest genome.
    """
    _cheapest_genome(choices, budget)
    # Lower bound on the cost of the remaining decisions.
    remaining_cost = np.append(np.cumsum(choices.cost.min(axis=1)[::-1])[::-1][1:], 0.0)
    cost, loss = np.zeros(1), np.zeros(1)
    history = []
    for losses, costs, remaining in zip(choices.loss, choices.cost, remaining_cost, strict=True):
        exists = np.flatnonzero(np.isfinite(costs))
        parent, option = (grid.ravel() for grid in np.meshgrid(np.arange(len(cost)), exists, indexing="ij"))
        cost, loss = cost[parent] + costs[option], loss[parent] + losses[option]
        order = np.lexsort((loss, cost))
        order = order[cost[order] <= (budget - remaining) * (1 + 1e-12)]
        better = np.append(np.inf, np.minimum.accumulate(loss[order])[:-1])
        kept = order[loss[order] < better]
        if len(kept) > _MAX_PARTIAL_GENOMES:
            kept = kept[np.linspace(0, len(kept) - 1, _MAX_PARTIAL_GENOMES).astype(int)]
        history.append((parent[kept], option[kept]))
        cost, loss = cost[kept], loss[kept]

    genome, state = np.zeros(len(history), np.int32), int(np.argmin(loss))
    for decision in reversed(range(len(history))):
        parent, option = history[decision]
        genome[decision], state = option[state], parent[state]
    return genome


def _cheapest_genome(choices: Options, budget: float) -> np.ndarray:
    genome = np.argmin(choices.cost, axis=1).astype(np.int32)
    lowest = choices.cost.min(axis=1).sum()
    if lowest > budget:
        raise ValueError(f"budget {budget:.6g} is below the cheapest genome, which costs {lowest:.6g}")
    return genome
