"""Sampling: from the scores of a controller to the policies of the next steps, and to the genomes that are settled on.

Training may take several targets in turn; each has a policy of its own, with the scores of one controller.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fliqs_jax.best_genome import best_within_budgets
from fliqs_jax.controller import Controller
from fliqs_jax.policy import Policy, within_budget
from hwcost.expected_pricing import RelativeCosts
from hwcost.pricing import Budget
from hwcost.space import SearchSpace


def next_policies(
    controller: Controller, costs: RelativeCosts | None, policies: Policy, state: Any, step: jax.Array
) -> Policy:
    """The policies of a step: those that learn have logits by the controller's scores, others stay as they are.

    Args:
      controller: gives the scores.
      costs: of the T targets; None samples from the scores as they are.
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
        traced = costs.traced()

        def of_target(own: Any) -> jax.Array:
            logits, per_option, share = own
            return within_budget(logits, traced._replace(per_option=per_option, share=share))

        of_each = (logits, traced.per_option, traced.share)
        logits = jax.lax.map(of_target, of_each) if traced.is_joint else jax.vmap(of_target)(of_each)
    return policies._replace(logits=jnp.where(policies.learns[:, None, None], logits, policies.logits))


def expected_cost(policy: Policy, costs: RelativeCosts) -> jax.Array:
    """Largest expected cost over target of a policy, float32 scalar; `costs` are for one set of targets."""
    probabilities = jax.nn.softmax(policy.logits)
    return jnp.max(jnp.stack([costs.expected(probabilities, budget) for budget in range(len(costs.joint))]))


def settled_genomes(
    controller: Controller,
    space: SearchSpace,
    budgets_by_target: Sequence[Sequence[Budget]],
    policies: Policy,
    state: Any,
    step: jax.Array,
) -> list[np.ndarray]:
    """The genome of each of T targets by what the controller knows, int32[D] each; on the host.

    Of policies that are sampled within the budget, it is that of the highest sum of scores which costs no more than its
    targets (`best_genome`); of others, the mode.

    Raises:
      ValueError: scores are not finite.
    """
    if not controller.within_budget or not policies.learns[0]:
        return list(np.argmax(policies.logits, axis=2).astype(np.int32))
    losses = -np.asarray(controller.scores(state, step), np.float64)
    if not np.isfinite(losses[space.exists]).all():
        raise ValueError("the controller's scores are not finite: no genome can be chosen by them")
    modes = np.argmax(policies.logits, axis=2)
    return [
        best_within_budgets(space, losses, budgets, (mode,))
        for budgets, mode in zip(budgets_by_target, modes, strict=True)
    ]
