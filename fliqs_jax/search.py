"""FLIQS: one training run in which a controller picks every layer's number format at every step (paper, §3, Figure 2).

`make_search_step` gives the one step; `SearchState` is all that it reads and writes. Searching, training a uniform
network, sampling uniformly and training a found genome differ in `SearchState.policy` alone.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from aqt_like import calibration, format_choice, interception
from fliqs_jax import models
from fliqs_jax.losses import Batch, Loss
from fliqs_jax.policy import Policy
from fliqs_jax.quality import Quality
from fliqs_jax.reward import Reward
from fliqs_jax.schedule import EntropySchedule
from hwcost import pricing
from hwcost.pricing import Budget

Metrics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
    """What a search is made of; nothing in it changes while it runs.

    Attributes:
      model: linen module called as `model(inputs, train=…)`, or without `train` if it takes none; gives logits.
      paths: paths of the L layers whose formats are searched.
      choice: `(genome) -> int32[L]`, the index into `bank` of each layer's format.
      bank: the formats that each layer chooses from.
      budgets: the costs C of a genome and their targets C_T, the main one first. The reward sees the largest C / C_T.
      optimizer: updates the weights.
      policy_optimizer: updates the policy's logits.
      loss: `(logits, train_batch) -> scalar`, to be minimised in training.
      quality: Q in the reward, and of the finished network.
      reward: `(Q, C/C_T, γ) -> scalar`.
      gamma: γ > 0, the weight of cost in the reward.
      entropy_schedule: `(progress, end) -> β_H`.
      entropy_end: β_H at the end of training.
      baseline_momentum: of the running means of reward and quality.
      cost_samples: 0 estimates the policy gradient from the one genome that is trained, as the paper does. N > 1 draws
        N more for the cost's part of it, which needs no network: see `_reinforcement`.
      total_steps: length of training.
      warmup_steps: steps during which formats are drawn uniformly and the policy is not updated.
      input_quantization_step: first step at which inputs (activations) are quantised.
      profile_steps: first step at which inputs are no longer profiled.
      quantizer: gradient, granularity and scales of the fake quantisation.
    """

    model: nn.Module
    paths: tuple[str, ...]
    choice: Callable[[jax.Array], jax.Array]
    bank: format_choice.FormatBank
    budgets: tuple[Budget, ...]
    optimizer: optax.GradientTransformation
    policy_optimizer: optax.GradientTransformation
    loss: Loss
    quality: Quality
    reward: Reward
    gamma: float
    entropy_schedule: EntropySchedule
    entropy_end: float
    baseline_momentum: float
    cost_samples: int
    total_steps: int
    warmup_steps: int
    input_quantization_step: int
    profile_steps: int
    quantizer: interception.Quantizer = interception.DEFAULT_QUANTIZER


class SearchState(NamedTuple):
    """All that changes. A checkpoint holds it whole.

    Attributes:
      step: int32, number of steps done; also the position in the data.
      key: typed PRNG key; each step folds its number into it.
      params, batch_stats, calibration: variable collections of the model.
      opt_state: of the weights.
      clip_multiples: leaves `[L, K]`.
      policy: the controller.
      policy_opt_state: of its logits.
      reward_mean, quality_mean: float32, running means of reward (r̄) and quality so far.
    """

    step: jax.Array
    key: jax.Array
    params: Any
    batch_stats: Any
    calibration: Any
    opt_state: Any
    clip_multiples: format_choice.ClipMultiples
    policy: Policy
    policy_opt_state: Any
    reward_mean: jax.Array
    quality_mean: jax.Array


def init_state(
    search: Search,
    policy: Policy,
    clip_multiples: format_choice.ClipMultiples,
    key: jax.Array,
    inputs: jax.Array,
) -> SearchState:
    """The state before the first step; `inputs` is a batch of any size, for its shape and type."""
    init_key, run_key = jax.random.split(key)
    variables = search.model.init(init_key, inputs, **models.mode(search.model, train=False))
    return SearchState(
        step=jnp.zeros((), jnp.int32),
        key=run_key,
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        calibration=interception.empty_calibration(search.paths),
        opt_state=search.optimizer.init(variables["params"]),
        # Copies: a step donates its state, and other runs start from the same multiples.
        clip_multiples=jax.tree.map(jnp.copy, clip_multiples),
        policy=policy,
        policy_opt_state=search.policy_optimizer.init(policy.logits),
        reward_mean=jnp.zeros(()),
        quality_mean=jnp.zeros(()),
    )


def quantized_variables(search: Search, state: SearchState, genome: jax.Array, quantize_inputs: Any) -> dict[str, Any]:
    """The model's variables under `genome`, for `interception.apply_quantized`."""
    formats = format_choice.format_state(
        search.paths,
        search.bank,
        state.clip_multiples,
        search.choice(genome),
        interception.stacked_calibration(search.paths, state.calibration),
        quantize_inputs,
    )
    return {
        "params": state.params,
        "batch_stats": state.batch_stats,
        "calibration": state.calibration,
        "formats": formats,
    }


def make_search_step(search: Search) -> Callable[[SearchState, Batch, Batch], tuple[SearchState, Metrics]]:
    """The step `(state, train_batch, valid_batch) -> (state, metrics)`; jit it with `state` donated.

    Batches hold `"input"` (`[B, …]`), `"label"`, and what else the loss reads. Metrics are scalars, but for `"genome"`.
    """
    apply = functools.partial(interception.apply_quantized, quantizer=search.quantizer)
    training = models.mode(search.model, train=True)

    def step_fn(state: SearchState, train_batch: Batch, valid_batch: Batch) -> tuple[SearchState, Metrics]:
        exploring = state.policy.learns & (state.step < search.warmup_steps)
        searching = state.policy.learns & ~exploring
        quantize_inputs = state.step >= search.input_quantization_step

        # Sample a genome: uniformly in warm-up, from the policy afterwards.
        flat = state.policy.uniform()
        sampled_from = state.policy._replace(logits=jnp.where(exploring, flat.logits, state.policy.logits))
        genome = sampled_from.sample(jax.random.fold_in(state.key, state.step))

        # Train the weights under it.
        def train_loss(params: Any) -> tuple[jax.Array, tuple[jax.Array, Any]]:
            variables = quantized_variables(search, state._replace(params=params), genome, quantize_inputs)
            logits, updated = apply(
                search.model, variables, train_batch["input"], **training, mutable=["batch_stats", "calibration"]
            )
            return search.loss(logits, train_batch), (logits, updated)

        (loss, (logits, updated)), gradient = jax.value_and_grad(train_loss, has_aux=True)(state.params)
        updates, opt_state = search.optimizer.update(gradient, state.opt_state, state.params)
        profiling = state.step < search.profile_steps
        calibration = jax.tree.map(
            lambda new, old: jnp.where(profiling, new, old), updated["calibration"], state.calibration
        )
        state = state._replace(
            params=optax.apply_updates(state.params, updates),
            batch_stats=updated.get("batch_stats", state.batch_stats),
            calibration=calibration,
            opt_state=opt_state,
        )

        # Its quality on data that the weights are not trained on. Running batch statistics lag behind formats that
        # change at every step, so this batch is normalised by its own.
        valid_logits, _ = apply(
            search.model,
            quantized_variables(search, state, genome, quantize_inputs),
            valid_batch["input"],
            **training,
            mutable=["batch_stats"],
        )
        quality = search.quality.on_batch(valid_logits, valid_batch)
        relative_cost = pricing.price_relative(search.budgets, genome)
        reward = search.reward(quality, relative_cost, search.gamma)

        # Reinforce what did better than usual, before this step counts as usual.
        state = state._replace(
            reward_mean=jnp.where(state.step == 0, reward, state.reward_mean),
            quality_mean=jnp.where(state.step == 0, quality, state.quality_mean),
        )
        genomes, advantages = _reinforcement(search, state, sampled_from, genome, relative_cost, reward)
        progress = (state.step - search.warmup_steps) / max(search.total_steps - search.warmup_steps, 1)
        entropy_weight = search.entropy_schedule(jnp.clip(progress, 0.0, 1.0), search.entropy_end)

        def policy_loss(logits: jax.Array) -> jax.Array:
            policy = state.policy._replace(logits=logits)
            log_probs = jax.vmap(policy.log_prob)(genomes)
            return -jnp.sum(advantages * log_probs) + entropy_weight * policy.entropy()

        policy_updates, policy_opt_state = search.policy_optimizer.update(
            jax.grad(policy_loss)(state.policy.logits), state.policy_opt_state, state.policy.logits
        )
        learned = (optax.apply_updates(state.policy.logits, policy_updates), policy_opt_state)
        kept = (state.policy.logits, state.policy_opt_state)
        policy_logits, policy_opt_state = jax.tree.map(lambda new, old: jnp.where(searching, new, old), learned, kept)

        metrics = {
            "loss": loss,
            "train_quality": search.quality.on_batch(logits, train_batch),
            "valid_quality": quality,
            "cost": pricing.price(search.budgets[0].table, genome),
            "relative_cost": relative_cost,
            "reward": reward,
            "advantage": advantages[0],
            "entropy": sampled_from.entropy(),
            "entropy_weight": jnp.where(searching, entropy_weight, 0.0),
            "genome": genome,
        }
        momentum = search.baseline_momentum
        return state._replace(
            step=state.step + 1,
            policy=state.policy._replace(logits=policy_logits),
            policy_opt_state=policy_opt_state,
            reward_mean=momentum * state.reward_mean + (1 - momentum) * reward,
            quality_mean=momentum * state.quality_mean + (1 - momentum) * quality,
        ), metrics

    return step_fn


def _reinforcement(
    search: Search,
    state: SearchState,
    sampled_from: Policy,
    genome: jax.Array,
    relative_cost: jax.Array,
    reward: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Which genomes to make more probable, int32[N, D], and by how much each, float32[N]; the trained one is the first.

    The paper reinforces the trained genome alone, by r − r̄ (FLIQS, Eq. 3; signs as in REINFORCE). Most of the noise in
    r − r̄ is that of the cost, which is known for any genome without training it. So with `cost_samples` the reward is
    split in two: what it would be at usual quality, whose gradient is averaged over many genomes drawn and priced for
    the purpose, and the rest, which only the trained genome can tell. Either way the expected gradient is the same.
    """
    if not search.cost_samples:
        return genome[None], (reward - state.reward_mean)[None]

    def at_usual_quality(relative_cost: jax.Array) -> jax.Array:
        return search.reward(state.quality_mean, relative_cost, search.gamma)

    keys = jax.random.split(jax.random.fold_in(state.key, search.total_steps + state.step), search.cost_samples)
    drawn = jax.vmap(sampled_from.sample)(keys)
    rewards = at_usual_quality(jax.vmap(lambda genome: pricing.price_relative(search.budgets, genome))(drawn))
    # Each genome's baseline is the mean of the others, hence N − 1.
    advantages = (rewards - jnp.mean(rewards)) / (search.cost_samples - 1)
    return (
        jnp.concatenate([genome[None], drawn]),
        jnp.concatenate([(reward - at_usual_quality(relative_cost))[None], advantages]),
    )


def make_recalibrate(search: Search) -> Callable[[SearchState, jax.Array, Batch], SearchState]:
    """A function `(state, genome, train_batch) -> state` that moves batch statistics towards those under `genome`."""
    apply = functools.partial(interception.apply_quantized, quantizer=search.quantizer)
    training = models.mode(search.model, train=True)

    def recalibrate(state: SearchState, genome: jax.Array, batch: Batch) -> SearchState:
        variables = quantized_variables(search, state, genome, True)
        _, updated = apply(search.model, variables, batch["input"], **training, mutable=["batch_stats"])
        return state._replace(batch_stats=updated.get("batch_stats", state.batch_stats))

    return recalibrate


def make_logits(search: Search) -> Callable[[SearchState, jax.Array, jax.Array], jax.Array]:
    """A function `(state, genome, inputs) -> logits` of the trained network."""
    apply = functools.partial(interception.apply_quantized, quantizer=search.quantizer)
    inference = models.mode(search.model, train=False)

    def logits(state: SearchState, genome: jax.Array, inputs: jax.Array) -> jax.Array:
        return apply(search.model, quantized_variables(search, state, genome, True), inputs, **inference)

    return logits


def make_evaluate(search: Search) -> Callable[[SearchState, jax.Array, Batch], Any]:
    """A function `(state, genome, batch) -> statistics` of the search's quality, to be summed over batches."""
    logits = make_logits(search)

    def evaluate(state: SearchState, genome: jax.Array, batch: Batch) -> Any:
        return search.quality.statistics(logits(state, genome, batch["input"]), batch)

    return evaluate


def make_profile_clip_multiples(
    search: Search, criterion: calibration.Criterion
) -> Callable[[SearchState, Batch], SearchState]:
    """A function `(state, train_batch) -> state` that replaces the clip multiples by the best ones on that batch."""

    def profile(state: SearchState, batch: Batch) -> SearchState:
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        training = models.mode(search.model, train=True)
        operands = interception.layer_operands(
            search.model, variables, batch["input"], **training, mutable=["batch_stats"]
        )
        multiples = format_choice.profiled_clip_multiples(search.paths, search.bank, state.params, operands, criterion)
        return state._replace(clip_multiples=multiples)

    return profile


def quality_over(
    search: Search,
    evaluate: Callable[[SearchState, jax.Array, Any], Any],
    state: SearchState,
    genome: jax.Array,
    batches: Iterable[Any],
) -> float:
    """The quality over all `batches` to six decimals, from `make_evaluate`'s function, jitted.

    Raises:
      ValueError: there are none.
    """
    total = None
    for batch in batches:
        found = jax.device_get(evaluate(state, genome, batch))
        total = found if total is None else jax.tree.map(np.add, total, found)
    if total is None:
        raise ValueError("no examples to measure the quality on")
    return round(float(search.quality.value(total)), 6)  # what float32 can tell
