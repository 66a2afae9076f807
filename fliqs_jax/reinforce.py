"""The controller of the paper: logits that follow the policy gradient of the reward (FLIQS, §3 and A.4)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fliqs_jax.controller import Controller, Observation
from fliqs_jax.policy import Policy, init_policy
from fliqs_jax.reward import Reward
from fliqs_jax.schedule import EntropySchedule
from hwcost import expected_pricing, pricing
from hwcost.expected_pricing import RelativeCosts
from hwcost.pricing import Budget
from hwcost.space import SearchSpace


class ReinforceState(NamedTuple):
    """State of the controller.

    Attributes:
      logits: float32[D, Kmax], θ of FLIQS, Eq. 2.
      opt_state: state of their optimiser.
      reward_mean: float32, running mean of the reward (r̄ in FLIQS, §3).
      quality_mean: float32, running mean of the quality.
    """

    logits: jax.Array
    opt_state: Any
    reward_mean: jax.Array
    quality_mean: jax.Array


def make_controller(
    space: SearchSpace,
    budgets: Sequence[Budget],
    *,
    reward: Reward,
    gamma: float,
    optimizer: optax.GradientTransformation,
    baseline_momentum: float,
    entropy_schedule: EntropySchedule,
    entropy_end: float,
    warmup_steps: int,
    total_steps: int,
    cost_samples: int = 0,
    paired: bool = False,
    within_budget: bool = False,
) -> Controller:
    """The controller of the paper; `within_budget`, one that knows no cost, since its genomes keep to it on average.

    Args:
      space: the decisions.
      budgets: costs and targets; the reward uses the largest ratio of cost to target.
      reward: `(Q, C/C_T, γ) -> scalar` (FLIQS, Eq. 1).
      gamma: γ > 0, the weight of the cost in the reward.
      optimizer: updates the logits.
      baseline_momentum: momentum of the running means of reward and quality.
      entropy_schedule: `(progress, end) -> β_H` (FLIQS, Eq. 9).
      entropy_end: β_H at the end of training.
      warmup_steps: number of steps with uniformly sampled formats, in which logits stay as they are (FLIQS, A.4).
      total_steps: number of training steps.
      cost_samples: 0 estimates the policy gradient from trained genomes only, as in the paper. N > 1 samples N more
        genomes for the part of the gradient that depends on the cost only: see `_advantages`.
      paired: whether the baseline is the reward of a second genome on the same validation batch instead of the running
        mean (self-critical training; Rennie et al., 2017). The expected gradient is the same.
      within_budget: whether genomes are sampled within the budget (`policy.within_budget`), in warm-up too. The reward
        is the quality alone then, and the logits follow its gradient along the policies of that expected cost;
        `reward`, `gamma` and `cost_samples` are not used.
    """
    flat = init_policy(space, "uniform")

    def init() -> ReinforceState:
        logits = jnp.copy(flat.logits)  # because steps donate their state
        return ReinforceState(logits, optimizer.init(logits), jnp.zeros(()), jnp.zeros(()))

    def sampled_logits(state: ReinforceState, step: jax.Array) -> jax.Array:
        return jnp.where(step < warmup_steps, flat.logits, state.logits)

    def scores(state: ReinforceState, step: jax.Array) -> jax.Array:
        return jnp.where(jnp.isfinite(flat.logits), sampled_logits(state, step), 0.0)

    def learn(state: ReinforceState, seen: Observation) -> tuple[ReinforceState, dict[str, jax.Array]]:
        rewards = seen.qualities if within_budget else reward(seen.qualities, seen.relative_costs, gamma)
        # The baseline r̄ does not contain the reward of this step yet.
        state = state._replace(
            reward_mean=jnp.where(seen.step == 0, rewards[0], state.reward_mean),
            quality_mean=jnp.where(seen.step == 0, seen.qualities[0], state.quality_mean),
        )
        sampled_from = Policy(seen.logits if within_budget else sampled_logits(state, seen.step), jnp.asarray(True))
        genomes, advantages = _advantages(state, sampled_from, seen, rewards)
        searching = seen.step >= warmup_steps
        progress = (seen.step - warmup_steps) / max(total_steps - warmup_steps, 1)
        entropy_weight = entropy_schedule(jnp.clip(progress, 0.0, 1.0), entropy_end)

        def policy_loss(logits: jax.Array) -> jax.Array:
            """−(r − r̄)·Σ log π(α) + β_H·H_M (FLIQS, Eq. 3 and Eq. 8, with signs such that descent reduces entropy)."""
            policy = sampled_from._replace(logits=logits)
            log_probs = jax.vmap(policy.log_prob)(genomes)
            return -jnp.sum(advantages * log_probs) + entropy_weight * policy.entropy()

        gradient = jax.grad(policy_loss)(seen.logits if within_budget else state.logits)
        if within_budget:
            costs = expected_pricing.relative_costs(space, [budgets]).of_set(0).traced()
            gradient = _at_equal_cost(gradient, seen.logits, costs)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.logits)
        learned = (optax.apply_updates(state.logits, updates), opt_state)
        logits, opt_state = jax.tree.map(
            lambda new, old: jnp.where(searching, new, old), learned, (state.logits, state.opt_state)
        )
        metrics = {
            "reward": rewards[0],
            "advantage": advantages[0],
            "entropy_weight": jnp.where(searching, entropy_weight, 0.0),
        }
        momentum = baseline_momentum
        return ReinforceState(
            logits,
            opt_state,
            reward_mean=momentum * state.reward_mean + (1 - momentum) * rewards[0],
            quality_mean=momentum * state.quality_mean + (1 - momentum) * seen.qualities[0],
        ), metrics

    def _advantages(
        state: ReinforceState, sampled_from: Policy, seen: Observation, rewards: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Genomes of the policy gradient, int32[N, D], and their advantages, float32[N]; the trained genome is first.

        The paper uses only the trained genome, with the advantage r − r̄ (FLIQS, §3 and Eq. 3; signs as in REINFORCE).
        Most of the variance of r − r̄ comes from the cost, which can be computed for any genome without training it.
        With `cost_samples` the reward is therefore split into the reward at the mean quality, whose gradient is
        averaged over genomes that are sampled and priced for this purpose, and the remainder, which needs a measured
        quality. The expected gradient is the same.
        """
        if not cost_samples or within_budget:
            return seen.genomes, _against_baseline(rewards, state.reward_mean)

        def reward_at_mean_quality(relative_cost: jax.Array) -> jax.Array:
            return reward(state.quality_mean, relative_cost, gamma)

        sampled = jax.vmap(sampled_from.sample)(jax.random.split(seen.key, cost_samples))
        priced = reward_at_mean_quality(jax.vmap(lambda genome: pricing.price_relative(budgets, genome))(sampled))
        remainder = _against_baseline(rewards - reward_at_mean_quality(seen.relative_costs), 0.0)
        return (
            jnp.concatenate([seen.genomes, sampled]),
            jnp.concatenate([remainder, _leave_one_out(priced)]),
        )

    def _against_baseline(rewards: jax.Array, baseline: jax.Array | float) -> jax.Array:
        return _leave_one_out(rewards) if paired else rewards - baseline

    return Controller(init, scores, learn, within_budget=within_budget, draws=2 if paired else 1)


_FULL = 0.999  # expected cost over target from which on a budget holds the policy back


def _at_equal_cost(gradient: jax.Array, logits: jax.Array, costs: RelativeCosts) -> jax.Array:
    """The gradient by the scores from that by the logits of a policy within the budget, float32[D, Kmax] both.

    Where scores change, so do the multipliers of the costs, such that the expected cost stays as it is: what would only
    change that cost has no effect. Marginal costs are taken as constant, which they are for sums over decisions.
    """
    probabilities = jax.nn.softmax(logits)
    slopes = costs.marginals(probabilities)
    # The derivatives of the expected costs by the logits.
    normals = probabilities * (slopes - jnp.sum(probabilities * slopes, axis=2, keepdims=True))
    expected = jnp.stack([costs.expected(probabilities, budget) for budget in range(len(slopes))])
    full = (expected >= _FULL)[:, None]
    slopes, normals = (jnp.where(full, each.reshape(len(each), -1), 0.0) for each in (slopes, normals))
    products = slopes @ normals.T
    ridge = jnp.where(full, 1e-6 * jnp.trace(products) + 1e-12, 1.0)  # for budgets that are alike, or settled
    multipliers = jnp.linalg.solve(products + ridge * jnp.eye(len(slopes)), slopes @ gradient.ravel())
    return gradient - (multipliers @ normals).reshape(gradient.shape)


def _leave_one_out(rewards: jax.Array) -> jax.Array:
    """Advantages of N genomes against the mean reward of the other N − 1, over N: float32[N]."""
    return (rewards - jnp.mean(rewards)) / (len(rewards) - 1)
