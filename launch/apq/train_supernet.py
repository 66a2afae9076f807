"""The supernet step: trains the once-for-all network (APQ, §3.1)."""

from collections.abc import Iterable

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from apq_jax import shrinking
from apq_jax.shrinking import Objective, ShrinkingState
from fliqs_jax import losses
from fliqs_jax.distillation import TEACHER_LOGITS, distilled
from fliqs_jax.quality import accuracy
from launch import data
from launch.apq import record_task
from launch.apq.pipeline import SUMMARY, SUPERNET, Pipeline
from launch.data.contract import first_batch, on_device
from launch.training import loop, optimizers, progress
from launch.training.checkpoints import Checkpoints, state_digest
from launch.training.interruption import stop_on_signals
from launch.training.mesh import compile_step, data_mesh, place_batch, replicated, split_batch
from launch.training.run_directory import METRICS
from launch.training.run_summary import environment_summary
from launch.training.settings import ConfigError, check_steps


def _objective(config: ConfigDict) -> Objective:
    loss = losses.cross_entropy(config.label_smoothing)
    settings = config.distillation
    distillation_loss = distilled(loss, weight=settings.weight, temperature=settings.temperature)
    return Objective(
        loss=loss,
        distillation_loss=lambda logits, batch, teacher: distillation_loss(logits, batch | {TEACHER_LOGITS: teacher}),
        quality=accuracy.on_batch,
    )


def _initial(pipeline: Pipeline) -> tuple[ShrinkingState, optax.GradientTransformation, int]:
    """The initial state, the optimiser, and the number of steps."""
    config = pipeline.config.supernet
    examples = pipeline.source.train_examples - pipeline.config.data.valid_examples
    steps = check_steps("supernet.epochs", config.epochs, config.epochs * (examples // config.batch_size))
    steps = max(steps, len(shrinking.STAGES))
    optimizer = optimizers.weight_optimizer(config.optimizer, steps)
    key = jax.random.key(pipeline.config.seed)
    return shrinking.init_state(pipeline.space, optimizer, key), optimizer, steps


def run(pipeline: Pipeline) -> None:
    """Trains the once-for-all network by progressive shrinking, resuming from its newest checkpoint."""
    if pipeline.done(f"{SUPERNET}/{SUMMARY}"):
        return
    config, space = pipeline.config.supernet, pipeline.space
    directory = pipeline.workdir / SUPERNET
    directory.mkdir(parents=True, exist_ok=True)
    dataset = pipeline.open_data()
    mesh = data_mesh()
    state, optimizer, steps = _initial(pipeline)
    state = jax.device_put(state, replicated(mesh))
    starts = shrinking.stage_starts(steps, config.stages.to_dict())
    checkpoints = Checkpoints(directory / "checkpoints")
    first_step = 0
    if restored := checkpoints.restore(state, say=pipeline.note):
        first_step, state = restored
        pipeline.note(f"once-for-all network: going on from step {first_step}")
    step = shrinking.make_step(
        space,
        optimizer=optimizer,
        objective=_objective(config),
        sampling=shrinking.SAMPLINGS[config.sampling],
        starts=starts,
    )

    def batches(first: int) -> Iterable[data.Batch]:
        return dataset.train_batches("train", batch_size=config.batch_size, first_step=first, augmented=True)

    first, ready = first_batch(dataset, "train", batch_size=config.batch_size, augmented=True) or {}, on_device(dataset)
    example = {name: jax.ShapeDtypeStruct(v.shape, v.dtype) for name, v in first.items()}
    compiled = compile_step(
        lambda state, batch: step(state, ready(batch)), mesh, jax.eval_shape(lambda: state), example
    )
    sharding = split_batch(mesh)
    with (
        stop_on_signals() as stop,
        progress.Recorder(
            directory / METRICS,
            title="once-for-all network",
            quality=accuracy.name,
            first_step=first_step,
            total_steps=steps,
            console=pipeline.console,
        ) as recorder,
    ):
        state = loop.run(
            state,
            step=compiled,
            batches=((place_batch(batch, sharding),) for batch in batches(first_step)),
            first_step=first_step,
            total_steps=steps,
            before_step=shrinking.before_steps(space, starts),
            saving=loop.Saving(
                recorder=recorder,
                log_every=config.log_every,
                policy_probabilities=lambda _: np.zeros((0, 0)),
                checkpoints=checkpoints,
                checkpoint_every=config.checkpoint_every,
            ),
            stop=stop,
            section="supernet.",
        )
    record_batches = record_task.read_batches(pipeline, dataset)
    measure = record_task.make_measure(record_task.make_task("float", pipeline, state, record_batches))
    genomes = {"largest": space.largest, "smallest": space.smallest}
    pipeline.write(
        f"{SUPERNET}/{SUMMARY}",
        {
            "steps": steps,
            "seconds": round(recorder.seconds, 1),
            "state_sha256": state_digest(state),
            "validation_accuracy": {name: measure(genome) for name, genome in genomes.items()},
            "bit_identical_on": recorder.devices,
            "reading": getattr(dataset, "reading", None),
            **environment_summary(),
        },
    )


def read_supernet(pipeline: Pipeline) -> ShrinkingState:
    """The state of the trained once-for-all network.

    Raises:
      ConfigError: it is not trained yet, or has no checkpoint, or that of another state.
      CheckpointError: its checkpoints are damaged, or of another network.
    """
    expected = pipeline.read(f"{SUPERNET}/{SUMMARY}")["state_sha256"]
    checkpoints = Checkpoints(pipeline.workdir / SUPERNET / "checkpoints", read_only=True)
    sharding, shapes = replicated(data_mesh()), jax.eval_shape(lambda: _initial(pipeline)[0])
    template = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes)
    restored = checkpoints.restore(template, say=pipeline.note)
    if restored is None:
        raise ConfigError(f"{pipeline.workdir / SUPERNET} has no checkpoint")
    if (digest := state_digest(restored[1])) != expected:
        raise ConfigError(
            f"the checkpoint of step {restored[0]} in {pipeline.workdir / SUPERNET} is not that of its {SUMMARY}: its "
            f"digest is {digest}, expected {expected}; put it back, or remove the directory to train anew"
        )
    return restored[1]
