"""One-shot search: a controller samples the format of every layer at every training step (FLIQS, §3, Figure 2).

`make_search_step` makes the one step, which reads and writes a `SearchState`. Searches, uniform baselines, random
search and training with a fixed genome differ only in `SearchState.policy`.
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

from aqt_like import calibration, format_choice, interception, recalibration
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
    """Constant part of a search.

    Attributes:
      model: linen module called as `model(inputs, train=…)`, or without `train` if it has no such argument.
      paths: paths of the L layers whose formats are searched.
      choice: `(genome) -> int32[L]`, index into `bank` of the format of each layer.
      bank: K formats that each layer chooses from.
      budgets: costs C of a genome and their targets C_T, the main one first. The reward uses the largest C / C_T.
      optimizer: updates the weights.
      policy_optimizer: updates the logits of the policy.
      loss: `(logits, train_batch) -> scalar`, training loss of the weights.
      quality: Q in the reward, and metric of the finished network.
      reward: `(Q, C/C_T, γ) -> scalar` (FLIQS, Eq. 1).
      gamma: γ > 0, the weight of the cost in the reward.
      entropy_schedule: `(progress, end) -> β_H` (FLIQS, Eq. 9).
      entropy_end: β_H at the end of training.
      baseline_momentum: momentum of the running means of reward and quality.
      cost_samples: 0 estimates the policy gradient from the trained genome only, as in the paper. N > 1 samples N more
        genomes for the part of the gradient that depends on the cost only: see `_reinforcement`.
      total_steps: number of training steps.
      warmup_steps: number of steps with uniformly sampled formats, in which the policy is not updated (FLIQS, A.4).
      input_quantization_step: first step at which inputs (activations) are quantised (FLIQS, A.2).
      profile_steps: first step at which inputs are no longer profiled.
      quantizer: gradient estimator, granularity and scales of the quantisation, and the type of codes.
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
    """Complete state of a search; checkpoints store all of it.

    Attributes:
      step: int32, number of completed steps; also the position in the data.
      key: typed PRNG key of the run; each step folds in its number.
      params, batch_stats, calibration: variable collections of the model.
      opt_state: optimiser state of the weights.
      clip_multiples: clip thresholds in units of the root mean square, leaves `[L, K]`.
      policy: policy of the controller.
      policy_opt_state: optimiser state of the logits of the policy.
      reward_mean, quality_mean: float32, running means of the reward (r̄ in FLIQS, §3) and of the quality.
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
    """Initial state of a search; of `inputs`, `[B, …]`, only shape and type are used."""
    init_key, run_key = jax.random.split(key)
    variables = search.model.init(init_key, inputs, **models.mode(search.model, train=False))
    return SearchState(
        step=jnp.zeros((), jnp.int32),
        key=run_key,
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        calibration=interception.empty_calibration(search.paths),
        opt_state=search.optimizer.init(variables["params"]),
        # Copied because a step donates its state, while other runs start from the same multiples.
        clip_multiples=jax.tree.map(jnp.copy, clip_multiples),
        policy=policy,
        policy_opt_state=search.policy_optimizer.init(policy.logits),
        reward_mean=jnp.zeros(()),
        quality_mean=jnp.zeros(()),
    )


def quantized_variables(search: Search, state: SearchState, genome: jax.Array, quantize_inputs: Any) -> dict[str, Any]:
    """Variables of the model with the formats of `genome`, int32[D], for `interception.apply_quantized`."""
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
    """Makes the search step `(state, train_batch, valid_batch) -> (state, metrics)`, to be jitted with `state` donated.

    Batches contain `"input"`, `[B, …]`, `"label"`, and whatever else the loss reads. Metrics are scalars except
    `"genome"`, int32[D].
    """
    apply = functools.partial(interception.apply_quantized, quantizer=search.quantizer)
    training = models.mode(search.model, train=True)

    def step_fn(state: SearchState, train_batch: Batch, valid_batch: Batch) -> tuple[SearchState, Metrics]:
        exploring = state.policy.learns & (state.step < search.warmup_steps)
        searching = state.policy.learns & ~exploring
        quantize_inputs = state.step >= search.input_quantization_step

        # Sample a genome: uniformly in warm-up, from the policy afterwards.
        uniform = state.policy.uniform()
        sampled_from = state.policy._replace(logits=jnp.where(exploring, uniform.logits, state.policy.logits))
        genome = sampled_from.sample(jax.random.fold_in(state.key, state.step))

        # Train the weights with the formats of this genome.
        profiling = state.step < search.profile_steps

        def train_loss(params: Any) -> tuple[jax.Array, tuple[jax.Array, Any]]:
            variables = quantized_variables(search, state._replace(params=params), genome, quantize_inputs)
            logits, updated = apply(
                search.model,
                variables,
                train_batch["input"],
                **training,
                mutable=["batch_stats", "calibration"],
                profiling=profiling,
            )
            return search.loss(logits, train_batch), (logits, updated)

        (loss, (logits, updated)), gradient = jax.value_and_grad(train_loss, has_aux=True)(state.params)
        updates, opt_state = search.optimizer.update(gradient, state.opt_state, state.params)
        state = state._replace(
            params=optax.apply_updates(state.params, updates),
            batch_stats=updated.get("batch_stats", state.batch_stats),
            calibration=updated["calibration"],
            opt_state=opt_state,
        )

        # Measure the quality on validation data. Running batch statistics lag behind formats that change at every step,
        # so this batch is normalised by its own statistics.
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

        # Update the policy. The baseline r̄ does not contain the reward of this step yet.
        state = state._replace(
            reward_mean=jnp.where(state.step == 0, reward, state.reward_mean),
            quality_mean=jnp.where(state.step == 0, quality, state.quality_mean),
        )
        genomes, advantages = _reinforcement(search, state, sampled_from, genome, relative_cost, reward)
        progress = (state.step - search.warmup_steps) / max(search.total_steps - search.warmup_steps, 1)
        entropy_weight = search.entropy_schedule(jnp.clip(progress, 0.0, 1.0), search.entropy_end)

        def policy_loss(logits: jax.Array) -> jax.Array:
            """−(r − r̄)·Σ log π(α) + β_H·H_M (FLIQS, Eq. 3 and Eq. 8, with signs such that descent reduces entropy)."""
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
    """Genomes of the policy gradient, int32[N, D], and their advantages, float32[N]; the trained genome is the first.

    The paper uses only the trained genome, with the advantage r − r̄ (FLIQS, §3 and Eq. 3; signs as in REINFORCE). Most
    of the variance of r − r̄ comes from the cost, which can be computed for any genome without training it. With
    `cost_samples` the reward is therefore split into the reward at the mean quality, whose gradient is averaged over
    genomes that are sampled and priced for this purpose, and the remainder, which needs the trained genome. The
    expected gradient is the same.
    """
    if not search.cost_samples:
        return genome[None], (reward - state.reward_mean)[None]

    def reward_at_mean_quality(relative_cost: jax.Array) -> jax.Array:
        return search.reward(state.quality_mean, relative_cost, search.gamma)

    keys = jax.random.split(jax.random.fold_in(state.key, search.total_steps + state.step), search.cost_samples)
    sampled = jax.vmap(sampled_from.sample)(keys)
    rewards = reward_at_mean_quality(jax.vmap(lambda genome: pricing.price_relative(search.budgets, genome))(sampled))
    # Leave-one-out baseline: the mean reward of the other N − 1 genomes.
    advantages = (rewards - jnp.mean(rewards)) / (search.cost_samples - 1)
    return (
        jnp.concatenate([genome[None], sampled]),
        jnp.concatenate([(reward - reward_at_mean_quality(relative_cost))[None], advantages]),
    )


def make_recalibrate(search: Search) -> Callable[[dict[str, Any], Iterable[Any]], dict[str, Any]]:
    """Makes `(variables, train_batches) -> variables`, which recalibrates batch statistics.

    Variables are those of `quantized_variables`, or of a frozen network with its codes as `"formats"`. The statistics
    become plain means over the batches, with the formats in place; see `aqt_like.recalibration`. The function jits its
    pass over a batch and is not to be jitted itself. It raises `recalibration.StatisticsError` if statistics are not
    finite.
    """
    apply = functools.partial(interception.apply_quantized, quantizer=search.quantizer)
    training = models.mode(search.model, train=True)

    @jax.jit
    def batch_sums(variables: dict[str, Any], batch: Batch) -> dict[str, recalibration.Sums]:
        def update(variables: dict[str, Any]) -> dict[str, Any]:
            return apply(search.model, variables, batch["input"], **training, mutable=["batch_stats"])[1]

        return recalibration.batch_sums(update, variables)

    def recalibrate(variables: dict[str, Any], batches: Iterable[Any]) -> dict[str, Any]:
        sums = (batch_sums(variables, batch) for batch in batches)
        return {**variables, "batch_stats": recalibration.recalibrated(variables.get("batch_stats", {}), sums)}

    return recalibrate


def make_logits(search: Search) -> Callable[[dict[str, Any], jax.Array], jax.Array]:
    """Makes `(variables, inputs) -> logits`, inference with the variables of `make_recalibrate`."""
    apply = functools.partial(interception.apply_quantized, quantizer=search.quantizer)
    inference = models.mode(search.model, train=False)

    def logits(variables: dict[str, Any], inputs: jax.Array) -> jax.Array:
        return apply(search.model, variables, inputs, **inference)

    return logits


def make_evaluate(search: Search) -> Callable[[dict[str, Any], Batch], Any]:
    """Makes `(variables, batch) -> statistics` of the quality, to be summed over batches; see `make_recalibrate`."""
    logits = make_logits(search)

    def evaluate(variables: dict[str, Any], batch: Batch) -> Any:
        return search.quality.statistics(logits(variables, batch["input"]), batch)

    return evaluate


def make_profile_clip_multiples(
    search: Search, criterion: calibration.Criterion
) -> Callable[[SearchState, Batch], SearchState]:
    """Makes `(state, train_batch) -> state`, which replaces the clip multiples by those that are best on the batch.

    This is switchable clipping with thresholds from real data (FLIQS, §3).
    """

    def profile(state: SearchState, batch: Batch) -> SearchState:
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        training = models.mode(search.model, train=True)
        operands = interception.layer_operands(
            search.model, variables, batch["input"], **training, mutable=["batch_stats"]
        )
        multiples = format_choice.profiled_clip_multiples(search.paths, search.bank, operands, criterion)
        return state._replace(clip_multiples=multiples)

    return profile


def quality_over(
    search: Search,
    evaluate: Callable[[dict[str, Any], Any], Any],
    variables: dict[str, Any],
    batches: Iterable[Any],
) -> float:
    """Quality over all `batches`, rounded to six decimals; `evaluate` is the jitted function of `make_evaluate`.

    Raises:
      ValueError: there are no batches.
    """
    total = None
    for batch in batches:
        statistics = jax.device_get(evaluate(variables, batch))
        total = statistics if total is None else jax.tree.map(np.add, total, statistics)
    if total is None:
        raise ValueError("no examples to measure the quality on")
    return round(float(search.quality.value(total)), 6)  # the precision of float32
