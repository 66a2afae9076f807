"""The genome of the lowest total loss within several budgets, whose costs may depend on decisions together.

It runs once, on the host, in NumPy. Where costs are sums over decisions it is exact (`assignment.best_within`). Else it
is a local search, which prices each genome that it tries exactly: the result keeps the budgets, and no other genome
that differs from it in one or two decisions keeps them at a lower loss.
"""

from collections.abc import Sequence

import numpy as np

from fliqs_jax import assignment
from hwcost import expected_pricing, pricing
from hwcost.pricing import Budget
from hwcost.space import SearchSpace


def best_within_budgets(
    space: SearchSpace, losses: np.ndarray, budgets: Sequence[Budget], near: Sequence[np.ndarray] = ()
) -> np.ndarray:
    """Genome of the lowest total loss within M budgets.

    Args:
      space: the decisions.
      losses: float64[D, Kmax], finite where there is an option.
      budgets: whose totals are sums over layers.
      near: genomes, int[D], that may be close to it, where a local search begins too.

    Returns:
      int32[D].

    Raises:
      ValueError: a cost is a peak over layers, or no genome is found that keeps all budgets.
    """
    losses = np.where(space.exists, losses, np.inf)
    costs = expected_pricing.relative_costs(space, [budgets])
    if not costs.is_joint:
        return assignment.best_within(losses, np.asarray(costs.per_option[0]))
    search = _LocalSearch(losses, budgets)
    starts = (losses.argmin(axis=1), np.zeros(len(space), np.intp), *near)
    found = [search.improved(genome) for genome in search.fitting(starts)]
    return min(found, key=search.loss).astype(np.int32)


class _LocalSearch:
    def __init__(self, losses: np.ndarray, budgets: Sequence[Budget]) -> None:
        self._losses, self._budgets = losses, budgets
        self._decision, self._option = np.nonzero(np.isfinite(losses))

    def loss(self, genome: np.ndarray) -> float:
        return float(self._losses[np.arange(len(genome)), genome].sum())

    def _prices(self, genomes: np.ndarray) -> np.ndarray:
        """Costs over targets of P genomes, int[P, D]: float64[P, M]."""
        prices = [pricing.price_layers(budget.table, genomes).sum(axis=-1) / budget.target for budget in self._budgets]
        return np.stack(prices, axis=-1)

    def _excess(self, genomes: np.ndarray) -> np.ndarray:
        """By how much P genomes exceed their budgets, float64[P]: 0 for those that keep them."""
        return np.maximum(self._prices(genomes) - (1 + assignment.ROUNDING), 0).sum(axis=1)

    def _changed(self, genome: np.ndarray, which: np.ndarray) -> np.ndarray:
        """The genome with each of some single changes."""
        genomes = np.repeat(genome[None], len(which), axis=0)
        genomes[np.arange(len(which)), self._decision[which]] = self._option[which]
        return genomes

    def _gains(self, genome: np.ndarray) -> np.ndarray:
        """By how much each single change lowers the loss, float64[C]."""
        return self._losses[self._decision, genome[self._decision]] - self._losses[self._decision, self._option]

    def fitting(self, starts: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Genomes near those of `starts` that keep the budgets.

        Raises:
          ValueError: there are none.
        """
        reduced = np.stack([self._reduced(genome) for genome in starts])
        fits = self._excess(reduced) == 0
        if not fits.any():
            nearest = self._prices(reduced).max(axis=1).min()
            raise ValueError(f"no genome was found that keeps all budgets: the nearest costs {nearest:.6g} × one")
        return list(reduced[fits])

    def _reduced(self, genome: np.ndarray) -> np.ndarray:
        """From a genome, single changes that lower its excess at the least loss, as long as there are any."""
        every = np.arange(len(self._decision))
        while (excess := self._excess(genome[None])[0]) > 0:
            changed = self._changed(genome, every)
            saved = excess - self._excess(changed)
            if not (saved > 0).any():
                break
            worth = np.where(saved > 0, saved / np.maximum(-self._gains(genome), 1e-30), -1.0)
            genome = changed[worth.argmax()]
        return genome

    def improved(self, genome: np.ndarray) -> np.ndarray:
        """From a genome that fits, changes of one or two decisions that lower the loss, until there are none."""
        while (better := self._better(genome)) is not None:
            genome = better
        return genome

    def _better(self, genome: np.ndarray) -> np.ndarray | None:
        gains = self._gains(genome)
        helpful = np.flatnonzero(gains > 0)
        order = helpful[np.argsort(-gains[helpful])]
        singles = self._changed(genome, order)
        fits = self._excess(singles) == 0
        if fits.any():
            return singles[fits.argmax()]
        for first, changed in zip(order, singles, strict=True):
            others = np.flatnonzero((gains + gains[first] > 0) & (self._decision != self._decision[first]))
            pairs = self._changed(changed, others)
            fits = self._excess(pairs) == 0
            if fits.any():
                return pairs[np.where(fits, gains[others], -np.inf).argmax()]
        return None
