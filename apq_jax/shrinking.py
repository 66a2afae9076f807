"""Progressive shrinking: how the once-for-all network is trained (APQ, §3.1; Cai et al., Once-for-All, 2020).

The largest network is trained first. Then kernels, channels and depths become elastic, one stage after the other, and
randomly sampled subnetworks are distilled from the largest network of the first stage. The set of elastic decisions is
data, so one compiled step serves all stages.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from apq_jax import supernet
from apq_jax.network_space import NetworkSpace
from fliqs_jax.models.elastic import Params, Weights

Batch = dict[str, jax.Array]
Metrics = dict[str, Any]
STAGES = ("full", "kernel", "channels", "depth")


class Objective(NamedTuple):
    """Losses and reported quality of training, as functions of logits, float32[B, classes].

    Attributes:
      loss: `(logits, batch) → scalar`, minimised in the first stage.
      distillation_loss: `(logits, batch, teacher_logits) → scalar`, minimised from the second stage on.
      quality: `(logits, batch) → scalar`, reported.
    """

    loss: Callable[[jax.Array, Batch], jax.Array]
    distillation_loss: Callable[[jax.Array, Batch, jax.Array], jax.Array]
    quality: Callable[[jax.Array, Batch], jax.Array]


class ShrinkingState(NamedTuple):
    """The state of training, and the content of a checkpoint.

    Attributes:
      step: int32[], number of steps done.
      key: typed PRNG key; each step folds its number into it.
      params: weights of the once-for-all network.
      batch_stats: running statistics over all trained subnetworks; evaluation recalibrates them.
      opt_state: optimiser state of the weights.
      teacher, teacher_stats: parameters and statistics of the largest network at the end of the first stage.
    """

    step: jax.Array
    key: jax.Array
    params: Weights
    batch_stats: Params
    opt_state: Any
    teacher: Params
    teacher_stats: Params


# Genomes of the N subnetworks that a step trains: `(space, key, elastic bool[D]) → int32[N, D]`. Decisions that are not
# elastic yet have their last option.
Sampling = Callable[[NetworkSpace, jax.Array, jax.Array], jax.Array]


def one_random(space: NetworkSpace, key: jax.Array, elastic: jax.Array) -> jax.Array:
    """One random subnetwork, int32[1, D]."""
    return jnp.where(elastic, space.sample(key), space.largest)[None]


def sandwich(space: NetworkSpace, key: jax.Array, elastic: jax.Array) -> jax.Array:
    """The largest, the smallest and a random subnetwork, int32[3, D] (sandwich rule, Yu & Huang, 2019)."""
    smallest = jnp.where(elastic, space.smallest, space.largest)
    return jnp.concatenate([jnp.stack([jnp.asarray(space.largest), smallest]), one_random(space, key, elastic)])


SAMPLINGS: Mapping[str, Sampling] = {"one_random": one_random, "sandwich": sandwich}


def elastic_decisions(space: NetworkSpace) -> np.ndarray:
    """bool[stages, D]: decisions elastic in each stage of `STAGES`: none, kernels, also channels, also depths."""
    stage_of: dict[str, int] = {}
    for layer in space.family.layers:
        stage_of |= {layer.kernel: 1, **dict.fromkeys((*layer.inputs.decisions, *layer.outputs.decisions), 2)}
        stage_of |= {layer.gate.decision: 3} if layer.gate else {}
    first = [stage_of.get(decision.name, len(STAGES)) for decision in space.search_space.decisions]
    return np.asarray(first) <= np.arange(len(STAGES))[:, None]


def stage_starts(total_steps: int, shares: Mapping[str, float]) -> dict[str, int]:
    """The first step of each stage, given the share of training of each.

    Raises:
      ValueError: the stages are not those of `STAGES`, a share is negative, or that of the first stage is 0.
    """
    if set(shares) != set(STAGES) or min(shares.values()) < 0 or shares[STAGES[0]] <= 0:
        raise ValueError(f"stages={dict(shares)}: expected a share above 0 for full, and shares for {STAGES[1:]}")
    ends = np.cumsum([shares[stage] for stage in STAGES]) / sum(shares.values())
    return dict(zip(STAGES, [0, *(round(end * total_steps) for end in ends[:-1])], strict=True))


def init_state(space: NetworkSpace, optimizer: optax.GradientTransformation, key: jax.Array) -> ShrinkingState:
    """The initial state of training, with random weights."""
    init_key, run_key = jax.random.split(key)

    @jax.jit  # one program, as in `supernet.init`
    def made(weights: Weights, batch_stats: Params) -> ShrinkingState:
        return ShrinkingState(
            step=jnp.zeros((), jnp.int32),
            key=run_key,
            params=weights,
            batch_stats=batch_stats,
            opt_state=optimizer.init(weights),
            teacher=jax.tree.map(jnp.copy, weights.params),
            teacher_stats=jax.tree.map(jnp.copy, batch_stats),
        )

    return made(*supernet.init(space, init_key))


def make_step(
    space: NetworkSpace,
    *,
    optimizer: optax.GradientTransformation,
    objective: Objective,
    sampling: Sampling,
    starts: Mapping[str, int],
) -> Callable[[ShrinkingState, Batch], tuple[ShrinkingState, Metrics]]:
    """The training step `(state, batch) → (state, metrics)`, to be jitted with `state` donated (APQ, §3.1)."""
    largest, elastic = space.family.largest, jnp.asarray(elastic_decisions(space))
    boundaries = jnp.asarray(list(starts.values()))

    def step_fn(state: ShrinkingState, batch: Batch) -> tuple[ShrinkingState, Metrics]:
        stage = jnp.sum(state.step >= boundaries) - 1
        genomes = sampling(space, jax.random.fold_in(state.key, state.step), elastic[stage])
        teacher_logits: Any = largest.apply(
            {"params": state.teacher, "batch_stats": state.teacher_stats}, batch["input"], train=False
        )

        def subnet_loss(weights: Weights, genome: jax.Array, batch_stats: Params) -> tuple[jax.Array, Any]:
            variables = {"params": supernet.specialised(space, weights, genome), "batch_stats": batch_stats}
            logits, updated = largest.apply(variables, batch["input"], train=True, mutable=["batch_stats"])
            loss = jnp.where(
                stage == 0, objective.loss(logits, batch), objective.distillation_loss(logits, batch, teacher_logits)
            )
            return loss, (logits, updated["batch_stats"])

        # Unrolled for at most three subnetworks, since XLA's convolutions are slow inside loops on CPUs.
        batch_stats, gradients, losses, qualities = state.batch_stats, [], [], []
        for genome in genomes:
            (loss, (logits, batch_stats)), gradient = jax.value_and_grad(subnet_loss, has_aux=True)(
                state.params, genome, batch_stats
            )
            gradients.append(gradient)
            losses.append(loss)
            qualities.append(objective.quality(logits, batch))
        gradient = jax.tree.map(lambda *parts: sum(parts) / len(parts), *gradients)
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        return state._replace(
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            opt_state=opt_state,
        ), {"loss": sum(losses) / len(losses), "train_quality": sum(qualities) / len(qualities), "stage": stage}

    return step_fn


def before_steps(
    space: NetworkSpace, starts: Mapping[str, int]
) -> dict[int, Callable[[ShrinkingState], ShrinkingState]]:
    """State changes by step: the largest network becomes the teacher, then channels are sorted by importance."""

    # Each is one program, as in `supernet.init`.
    @jax.jit
    def set_teacher(state: ShrinkingState) -> ShrinkingState:
        copied = jax.tree.map(jnp.copy, (state.params.params, state.batch_stats))
        return state._replace(teacher=copied[0], teacher_stats=copied[1])

    @jax.jit
    def sort_channels(state: ShrinkingState) -> ShrinkingState:
        weights, batch_stats = supernet.sorted_by_importance(space, state.params, state.batch_stats)
        # Moments belong to the old order of channels and are reset; step counts stay.
        opt_state = jax.tree.map(
            lambda leaf: jnp.zeros_like(leaf) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, state.opt_state
        )
        return state._replace(params=weights, batch_stats=batch_stats, opt_state=opt_state)

    changes: dict[int, Callable[[ShrinkingState], ShrinkingState]] = {}
    for step, change in ((starts["kernel"], set_teacher), (starts["channels"], sort_channels)):
        earlier = changes.get(step, lambda state: state)
        changes[step] = lambda state, earlier=earlier, change=change: change(earlier(state))
    return changes
