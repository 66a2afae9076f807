"""Sampling: from the scores of a controller to the policies of the next steps, and to the genomes that are settled on.

Training may take several targets in turn; each has a policy of its own, with the scores of one controller.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fliqs_jax import assignment
from fliqs_jax.controller import Controller
from fliqs_jax.policy import Policy, within_budget
from hwcost.pricing import Budget
from hwcost.space import SearchSpace


def relative_option_costs(space: SearchSpace, budgets_by_target: Sequence[Sequence[Budget]]) -> np.ndarray:
    """The cost of each option over each of M budgets' targets, float64[T, M, D, Kmax]; 0 where there is no option.

    Raises:
      ValueError: a cost is no sum over decisions.
    """

    def of_budget(budget: Budget) -> np.ndarray:
        costs = assignment.option_costs(space, budget.table)
        return np.where(space.exists, costs, 0.0) / budget.target

    return np.stack([np.stack([of_budget(budget) for budget in budgets]) for budgets in budgets_by_target])


def next_policies(
    controller: Controller, costs: np.ndarray | None, policies: Policy, state: Any, step: jax.Array
) -> Policy:
    """The policies of a step: those that learn have logits by the controller's scores, others stay as they are.

    Args:
      controller: gives the scores.
      costs: see `relative_option_costs`; None samples from the scores as they are.
      policies: leaves `[T, …]`; logits of −inf stay.
      state: state of the controller.
      step: int32, number of steps completed before.

    Raises:
      ValueError: scores of another shape.
    """
    scores = controller.scores(state, step)
    if scores.shape != policies.logits.shape[1:]:
        raise ValueError(f"the controller has scores of shape {scores.shape}, expected {policies.logits.shape[1:]}")
    logits = jnp.where(jnp.isfinite(policies.logits), scores, -jnp.inf)
    if costs is not None:
        logits = jax.vmap(within_budget)(logits, jnp.asarray(costs, jnp.float32))
    return policies._replace(logits=jnp.where(policies.learns[:, None, None], logits, policies.logits))


def expected_cost(policy: Policy, costs: jax.Array) -> jax.Array:
    """Largest expected cost over target of a policy, float32 scalar; `costs` is float32[M, D, Kmax]."""
    return jnp.max(jnp.sum(jax.nn.softmax(policy.logits) * costs, axis=(1, 2)))


def settled_genomes(
    controller: Controller, costs: np.ndarray | None, policies: Policy, state: Any, step: jax.Array
) -> list[np.ndarray]:
    """The genome of each target by what the controller knows, int32[D] each; on the host, with the same arguments.

    Of policies that are sampled within the budget, it is that of the highest sum of scores which costs no more than its
    targets; of others, the mode.

    Raises:
      ValueError: scores are not finite.
    """
    if costs is None or not policies.learns[0]:
        return list(np.argmax(policies.logits, axis=2).astype(np.int32))
    exists = np.isfinite(policies.logits[0])
    losses = np.where(exists, -np.asarray(controller.scores(state, step), np.float64), np.inf)
    if not np.isfinite(losses[exists]).all():
        raise ValueError("the controller's scores are not finite: no genome can be chosen by them")
    return [assignment.best_within(losses, of_target) for of_target in costs]
