"""Format assignment from layer sensitivities under a cost budget: baselines of FLIQS that need no training.

Greedy and knapsack assignment both assume that the losses of layers add up. They run once, on the host, in NumPy.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import optimize

from hwcost import expected_pricing
from hwcost.format_plan import FormatPlan
from hwcost.pricing import CostTable
from hwcost.space import SearchSpace

ROUNDING = 1e-12  # relative: sums of the same costs in another order differ by so much
_MAX_PARTIAL_GENOMES = 50_000  # that the knapsack keeps after each decision


class Options(NamedTuple):
    """Loss and cost of each option of each decision, both float64[D, Kmax], infinite where there is no such option."""

    loss: np.ndarray
    cost: np.ndarray


def options(plan: FormatPlan, cost_table: CostTable, layer_losses: np.ndarray) -> Options:
    """Loss and cost of each option, summed over the layers that share a decision; `layer_losses` is float64[L, K].

    Raises:
      ValueError: see `option_costs`.
    """
    cost = option_costs(plan.space, cost_table)
    loss = np.where(np.isfinite(cost), 0.0, np.inf)
    for layer, decision in enumerate(plan.decision_of):
        loss[decision] += layer_losses[layer, plan.format_of_option[decision]]
    return Options(loss, cost)


def option_costs(space: SearchSpace, cost_table: CostTable) -> np.ndarray:
    """Cost of each option of each decision, float64[D, Kmax], infinite where there is no such option.

    Raises:
      ValueError: the cost of a layer depends on several decisions, or the total cost is not a sum over layers.
    """
    separated = expected_pricing.separated(space, cost_table)
    if separated.joint:
        raise ValueError("a layer's cost depends on several decisions: expected costs that are sums over decisions")
    return np.where(space.exists, separated.per_option, np.inf)


def best_within(losses: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """Genome of the lowest total loss within several budgets: the knapsack for one, else by integer programming.

    Of several budgets, genomes that come within a millionth of one may be passed over.

    Args:
      losses: float64[D, Kmax], infinite where there is no option.
      costs: float64[M, D, Kmax], cost of each option over each budget's target.

    Returns:
      int32[D].

    Raises:
      ValueError: no genome keeps all budgets.
    """
    if len(costs) == 1:
        return knapsack(Options(losses, np.where(np.isfinite(losses), costs[0], np.inf)), 1.0)
    decision, option = np.nonzero(np.isfinite(losses))
    chosen = (decision == np.arange(len(losses))[:, None]).astype(float)
    per_option = costs[:, decision, option]
    lowest = np.where(np.isfinite(losses), losses, np.inf).min(axis=1)
    excess = (losses - lowest[:, None])[decision, option]
    for room in (1.0, 1.0 - 1e-6):  # The solver's tolerance may exceed a budget by so much.
        found = optimize.milp(
            excess / (excess.max() or 1.0),
            integrality=np.ones(len(option)),
            bounds=optimize.Bounds(0, 1),
            constraints=[optimize.LinearConstraint(chosen, 1, 1), optimize.LinearConstraint(per_option, ub=room)],
            options={"mip_rel_gap": 0.0},
        )
        if found.x is None:
            break
        genome = option[np.argmax(np.where(chosen > 0, found.x, -1.0), axis=1)].astype(np.int32)
        if (costs[:, np.arange(len(genome)), genome].sum(axis=1) <= 1 + ROUNDING).all():
            return genome
    cheapest = np.where(np.isfinite(losses), costs.sum(axis=0), np.inf).argmin(axis=1).astype(np.int32)
    if (costs[:, np.arange(len(cheapest)), cheapest].sum(axis=1) <= 1 + ROUNDING).all():
        return cheapest
    raise ValueError("no genome keeps all budgets at once")


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
    """Genome of the lowest total loss within the budget: the last one of `front`, which says how exact it is.

    Returns:
      int32[D].

    Raises:
      ValueError: the budget is below the cost of the cheapest genome.
    """
    return front(choices, budget)[-1]


def front(choices: Options, budget: float = np.inf) -> np.ndarray:
    """Genomes within the budget that no cheaper one matches in total loss, by dynamic programming.

    After each decision the Pareto front of the partial genomes over cost and loss is kept. The result is exact as long
    as a front has at most 50,000 members; a larger one is thinned evenly over cost. The budget always holds.

    Returns:
      int32[N, D], from the cheapest to the dearest, which has the lowest loss.

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
        order = order[cost[order] + remaining <= budget * (1 + ROUNDING)]
        better = np.append(np.inf, np.minimum.accumulate(loss[order])[:-1])
        kept = order[loss[order] < better]
        if len(kept) > _MAX_PARTIAL_GENOMES:
            kept = kept[np.linspace(0, len(kept) - 1, _MAX_PARTIAL_GENOMES).astype(int)]
        history.append((parent[kept], option[kept]))
        cost, loss = cost[kept], loss[kept]

    genomes, state = np.zeros((len(cost), len(history)), np.int32), np.arange(len(cost))
    for decision in reversed(range(len(history))):
        parent, option = history[decision]
        genomes[:, decision], state = option[state], parent[state]
    return genomes


def cheapest_that_holds(costs: np.ndarray, holds: Callable[[int], bool], *, within: float = 0.01) -> int | None:
    """Index of the cheapest genome that was asked and holds, of N, by bisection.

    Where all that are dearer than one that holds do so too, none that costs less by the share `within` holds.

    Args:
      costs: float64[N], rising.
      holds: `(index) -> bool`, which is expensive; it is asked once for about log2(N) indices.
      within: share of the cost at which the search ends.

    Returns:
      The index; None if the dearest genome does not hold.
    """
    cheap, dear = 0, len(costs) - 1
    if not holds(dear):
        return None
    if dear == 0 or holds(cheap):
        return cheap
    while dear - cheap > 1 and costs[dear] - costs[cheap] > within * abs(costs[dear]):
        middle = (cheap + dear) // 2
        if holds(middle):
            dear = middle
        else:
            cheap = middle
    return dear


def _cheapest_genome(choices: Options, budget: float) -> np.ndarray:
    genome = np.argmin(choices.cost, axis=1).astype(np.int32)
    lowest = choices.cost.min(axis=1).sum()
    if lowest > budget * (1 + ROUNDING):
        raise ValueError(f"budget {budget:.6g} is below the cheapest genome, which costs {lowest:.6g}")
    return genome
