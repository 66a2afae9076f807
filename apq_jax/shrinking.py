"""Progressive shrinking: training the once-for-all network so that all networks in it are good (Cai et al., 2020).

First the largest network is trained; then, stage by stage, kernels, channels and depths become elastic, and networks
drawn at random learn from the largest one of the first stage. Which decisions are elastic is data, so one compiled step
serves all stages.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from apq_jax import supernet
from apq_jax.architectures import ArchitectureSpace
from apq_jax.block_network import BlockNetwork
from apq_jax.supernet import Params, Weights

Batch = dict[str, jax.Array]
Metrics = dict[str, Any]
STAGES = ("full", "kernel", "channels", "depth")


class Objective(NamedTuple):
    """What training minimises and reports, in functions.

    Attributes:
      loss: `(logits, batch) → scalar`, of the largest network in the first stage.
      taught_loss: `(logits, batch, teacher_logits) → scalar`, from the second stage on.
      quality: `(logits, batch) → scalar`.
    """

    loss: Callable[[jax.Array, Batch], jax.Array]
    taught_loss: Callable[[jax.Array, Batch, jax.Array], jax.Array]
    quality: Callable[[jax.Array, Batch], jax.Array]


class ShrinkingState(NamedTuple):
    """All that changes; a checkpoint holds it whole.

    Attributes:
      step: int32.
      key: typed PRNG key; each step folds its number into it.
      params: of the once-for-all network.
      batch_stats: running statistics of no network in particular; what is evaluated is recalibrated.
      opt_state: of the weights.
      teacher, teacher_stats: the largest network at the end of the first stage.
    """

    step: jax.Array
    key: jax.Array
    params: Weights
    batch_stats: Params
    opt_state: Any
    teacher: Params
    teacher_stats: Params


# Which networks a step trains: `(space, key, elastic) → int32[N, D]`, where decisions that are not elastic yet have
# their last option.
Sampling = Callable[[ArchitectureSpace, jax.Array, jax.Array], jax.Array]


def one_random(space: ArchitectureSpace, key: jax.Array, elastic: jax.Array) -> jax.Array:
    """A random network."""
    return jnp.where(elastic, space.sample(key), space.largest)[None]


def sandwich(space: ArchitectureSpace, key: jax.Array, elastic: jax.Array) -> jax.Array:
    """The largest, the smallest and a random network (Yu & Huang, 2019)."""
    smallest = jnp.where(elastic, space.smallest, space.largest)
    return jnp.concatenate([jnp.stack([jnp.asarray(space.largest), smallest]), one_random(space, key, elastic)])


SAMPLINGS: Mapping[str, Sampling] = {"one_random": one_random, "sandwich": sandwich}


def elastic_decisions(space: ArchitectureSpace) -> np.ndarray:
    """bool[stages, D]: what each stage of `STAGES` draws: nothing, then kernels, then channels too, then depths."""
    kinds = [decision.name.rpartition(".")[2] for decision in space.search_space.decisions]
    return np.asarray([[kind in STAGES[1 : stage + 1] for kind in kinds] for stage in range(len(STAGES))])


def stage_starts(total_steps: int, shares: Mapping[str, float]) -> dict[str, int]:
    """The first step of each stage, from each one's share of training.

    Raises:
      ValueError: shares of other stages, below 0, or none of the first.
    """
    if set(shares) != set(STAGES) or min(shares.values()) < 0 or shares[STAGES[0]] <= 0:
        raise ValueError(f"stages={dict(shares)}: expected a share above 0 for full, and shares for {STAGES[1:]}")
    ends = np.cumsum([shares[stage] for stage in STAGES]) / sum(shares.values())
    return dict(zip(STAGES, [0, *(round(end * total_steps) for end in ends[:-1])], strict=True))


def init_state(
    space: ArchitectureSpace, full: BlockNetwork, optimizer: optax.GradientTransformation, key: jax.Array
) -> ShrinkingState:
    """The state before the first step."""
    init_key, run_key = jax.random.split(key)
    weights, batch_stats = supernet.init(space, full, init_key)
    return ShrinkingState(
        step=jnp.zeros((), jnp.int32),
        key=run_key,
        params=weights,
        batch_stats=batch_stats,
        opt_state=optimizer.init(weights),
        teacher=jax.tree.map(jnp.copy, weights.params),
        teacher_stats=jax.tree.map(jnp.copy, batch_stats),
    )


def make_step(
    space: ArchitectureSpace,
    full: BlockNetwork,
    *,
    optimizer: optax.GradientTransformation,
    objective: Objective,
    sampling: Sampling,
    starts: Mapping[str, int],
) -> Callable[[ShrinkingState, Batch], tuple[ShrinkingState, Metrics]]:
    """The step `(state, batch) → (state, metrics)`; jit it with `state` donated."""
    elastic = jnp.asarray(elastic_decisions(space))
    boundaries = jnp.asarray(list(starts.values()))

    def step_fn(state: ShrinkingState, batch: Batch) -> tuple[ShrinkingState, Metrics]:
        stage = jnp.sum(state.step >= boundaries) - 1
        genomes = sampling(space, jax.random.fold_in(state.key, state.step), elastic[stage])
        teacher_logits: Any = full.apply(
            {"params": state.teacher, "batch_stats": state.teacher_stats}, batch["input"], train=False
        )

        def loss_of(weights: Weights, genome: jax.Array, batch_stats: Params) -> tuple[jax.Array, Any]:
            variables = {"params": supernet.specialised(space, weights, genome), "batch_stats": batch_stats}
            logits, updated = full.apply(variables, batch["input"], train=True, mutable=["batch_stats"])
            loss = jnp.where(
                stage == 0, objective.loss(logits, batch), objective.taught_loss(logits, batch, teacher_logits)
            )
            return loss, (logits, updated["batch_stats"])

        # Unrolled: XLA's convolutions are slow inside loops on CPUs, and there are three networks at most.
        batch_stats, gradients, losses, qualities = state.batch_stats, [], [], []
        for genome in genomes:
            (loss, (logits, batch_stats)), gradient = jax.value_and_grad(loss_of, has_aux=True)(
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
    space: ArchitectureSpace, starts: Mapping[str, int]
) -> dict[int, Callable[[ShrinkingState], ShrinkingState]]:
    """What happens between stages: the largest network becomes the teacher; channels are sorted by importance."""

    def graduate(state: ShrinkingState) -> ShrinkingState:
        copied = jax.tree.map(jnp.copy, (state.params.params, state.batch_stats))
        return state._replace(teacher=copied[0], teacher_stats=copied[1])

    def sort(state: ShrinkingState) -> ShrinkingState:
        weights, batch_stats = supernet.sorted_by_importance(space, state.params, state.batch_stats)
        # Moments belong to the channels as they were; counts of steps stay.
        opt_state = jax.tree.map(
            lambda leaf: jnp.zeros_like(leaf) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, state.opt_state
        )
        return state._replace(params=weights, batch_stats=batch_stats, opt_state=opt_state)

    found: dict[int, Callable[[ShrinkingState], ShrinkingState]] = {}
    for number, change in ((starts["kernel"], graduate), (starts["channels"], sort)):
        earlier = found.get(number, lambda state: state)
        found[number] = lambda state, earlier=earlier, change=change: change(earlier(state))
    return found
