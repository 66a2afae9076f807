"""Pricing of policies: the expected cost of a genome whose decisions are drawn independently of each other.

A cost is a sum over layers, so its expectation is a sum too: that of a layer is its term, contracted with the
probabilities of the decisions that it depends on. Its derivative by a probability is the expected cost of that option,
if all other decisions are drawn.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hwcost.pricing import Budget, CostTable
from hwcost.space import SearchSpace


class JointTerms(NamedTuple):
    """Terms that depend on several decisions, as N rows: a row is for one option of each decision but the last.

    Attributes:
      place: int32[N, k], position of these options in the flattened probabilities, `D · Kmax` where there are fewer.
      last: int32[N], the last decision of the row's term.
      values: float64[N, Kmax], for each option of the last decision; 0 where there is no option.
    """

    place: np.ndarray
    last: np.ndarray
    values: np.ndarray


class SeparatedTable(NamedTuple):
    """A cost table by what its terms depend on; a decision with one option is none.

    Attributes:
      per_option: float64[D, Kmax], the sum of terms that depend on one decision alone; 0 where there is no option.
      joint: terms that depend on several; None if none does.
    """

    per_option: np.ndarray
    joint: JointTerms | None


def separated(space: SearchSpace, table: CostTable) -> SeparatedTable:
    """The terms of a table by what they depend on.

    Raises:
      ValueError: the total cost is not a sum over layers.
    """
    if table.peak:
        raise ValueError(
            "the dearest layer alone makes the cost: only policy=reinforce, not within the budget, can search it"
        )
    counts, (decisions, widest) = space.option_counts, space.exists.shape
    per_option, joint = np.zeros((decisions, widest)), []
    ends = [*table.offset[1:], len(table.flat)]
    for start, end, decision, stride in zip(table.offset, ends, table.decision, table.stride, strict=True):
        used = decision[(stride > 0) & (counts[decision] > 1)]
        values = table.flat[start:end]
        if len(used) < 2:
            per_option[used[0] if len(used) else decision[0], : len(values)] += values
            continue
        *firsts, last = used
        options = np.indices(tuple(counts[firsts])).reshape(len(firsts), -1)
        place = np.full((options.shape[1], table.decision.shape[1] - 1), decisions * widest, np.int32)
        place[:, : len(firsts)] = (np.asarray(firsts)[:, None] * widest + options).T
        rows = np.zeros((len(place), widest))
        rows[:, : counts[last]] = values.reshape(-1, counts[last])
        joint.append(JointTerms(place, np.full(len(place), last, np.int32), rows))
    return SeparatedTable(per_option, JointTerms(*map(np.concatenate, zip(*joint, strict=True))) if joint else None)


class RelativeCosts(NamedTuple):
    """The costs of M budgets over their targets, for T sets of targets; without the first axis, for one of them.

    Attributes:
      per_option: float64[T, M, D, Kmax], what each option adds whatever the others are; 0 where there is no option.
      joint: of each budget, the terms that depend on several decisions, over the budget's target in the first set.
      share: float64[T, M], that target over the budget's target in each set.
    """

    per_option: np.ndarray | jax.Array
    joint: tuple[JointTerms | None, ...]
    share: np.ndarray | jax.Array

    @property
    def is_joint(self) -> bool:
        """Whether some cost is no sum over decisions."""
        return any(terms is not None for terms in self.joint)

    def of_set(self, number: int | jax.Array) -> "RelativeCosts":
        """The costs for one set of targets by its number, which may be traced."""
        return self._replace(per_option=self.per_option[number], share=self.share[number])

    def traced(self) -> "RelativeCosts":
        """The costs in float32, for use in JAX."""
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32 if leaf.dtype == np.float64 else None), self)

    def expected(self, probabilities: jax.Array, budget: int) -> jax.Array:
        """The expected cost over target of a budget, float32 scalar, of costs for one set of targets.

        Args:
          probabilities: float32[D, Kmax], of the options of each decision.
          budget: its number.
        """
        total, terms = jnp.sum(probabilities * self.per_option[budget]), self.joint[budget]
        if terms is None:
            return total
        flat = jnp.append(probabilities.ravel(), 1.0)
        drawn = jnp.sum(terms.values * probabilities[terms.last], axis=1)
        for place in terms.place.T:
            drawn = drawn * flat[place]
        return total + self.share[budget] * jnp.sum(drawn)

    def marginals(self, probabilities: jax.Array) -> jax.Array:
        """The expected cost over target that each option brings, float32[M, D, Kmax], up to a constant per decision.

        The other decisions are drawn by `probabilities`, float32[D, Kmax].
        """
        return jnp.stack([jax.grad(self.expected)(probabilities, budget) for budget in range(len(self.joint))])


def relative_costs(space: SearchSpace, budgets_by_target: Sequence[Sequence[Budget]]) -> RelativeCosts:
    """The costs of M budgets over each of T sets of targets; only targets differ between sets.

    Raises:
      ValueError: the total of a cost is not a sum over layers.
    """
    first = budgets_by_target[0]
    tables = [separated(space, budget.table) for budget in first]
    targets = np.asarray([[budget.target for budget in budgets] for budgets in budgets_by_target])
    joint = tuple(
        table.joint and table.joint._replace(values=table.joint.values / budget.target)
        for table, budget in zip(tables, first, strict=True)
    )
    per_option = np.stack([table.per_option for table in tables])
    return RelativeCosts(per_option / targets[..., None, None], joint, targets[0] / targets)
