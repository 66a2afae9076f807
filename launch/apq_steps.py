"""The steps of APQ (paper, Algorithm 1), each of which writes what the next ones read into the work directory."""

import itertools
import time
from collections.abc import Iterable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial
from ml_collections import ConfigDict
from rich.progress import track
from safetensors.numpy import load_file, save_file

from apq_jax import accuracy, evolution, predictor, records, shrinking
from apq_jax.predictor import Dense, Predictor
from apq_jax.records import Record, RecordFile
from apq_jax.shrinking import Objective, ShrinkingState
from apq_jax.space import ArchitectureSpace
from fliqs_jax import losses, quality
from fliqs_jax.distillation import TEACHER_LOGITS, distilled
from hwcost import table as table_lib
from hwcost.costs import COSTS, find_cost
from launch import data, loop, optimizers, progress, runs, runtime
from launch.apq_pipeline import BIT_OPERATIONS, PREDICTOR, RECORD_FILES, SEARCH, SUMMARY, SUPERNET, Pipeline
from launch.experiment import ConfigError

# The once-for-all network.


def _objective(config: ConfigDict) -> Objective:
    loss = losses.cross_entropy(config.label_smoothing)
    settings = config.distillation
    taught = distilled(loss, weight=settings.weight, temperature=settings.temperature)
    return Objective(
        loss=loss,
        taught_loss=lambda logits, batch, teacher: taught(logits, batch | {TEACHER_LOGITS: teacher}),
        quality=quality.accuracy.of_batch,
    )


def open_data(pipeline: Pipeline) -> data.Dataset:
    """The data of an experiment."""
    return pipeline.source.open(valid_examples=pipeline.config.data.valid_examples, seed=pipeline.config.seed)


def _supernet_state(pipeline: Pipeline) -> tuple[ShrinkingState, optax.GradientTransformation, int]:
    """The state before training, the optimiser, and the number of steps."""
    config = pipeline.config.supernet
    examples = pipeline.source.train_examples - pipeline.config.data.valid_examples
    steps = max(round(config.epochs * (examples // config.batch_size)), len(shrinking.STAGES))
    optimizer = optimizers.weight_optimizer(config.optimizer, steps)
    key = jax.random.key(pipeline.config.seed)
    return shrinking.init_state(pipeline.space, pipeline.full, optimizer, key), optimizer, steps


def train_supernet(pipeline: Pipeline) -> None:
    """Trains the once-for-all network by progressive shrinking, from its newest checkpoint if it has one."""
    if pipeline.done(f"{SUPERNET}/{SUMMARY}"):
        return
    config, space = pipeline.config.supernet, pipeline.space
    directory = pipeline.workdir / SUPERNET
    directory.mkdir(parents=True, exist_ok=True)
    dataset = open_data(pipeline)
    mesh = runtime.data_mesh()
    state, optimizer, steps = _supernet_state(pipeline)
    state = jax.device_put(state, runtime.replicated(mesh))
    starts = shrinking.stage_starts(steps, config.stages.to_dict())
    checkpoints = runtime.Checkpoints(directory / "checkpoints")
    first_step = 0
    if restored := checkpoints.restore(state, say=pipeline.note):
        first_step, state = restored
        pipeline.note(f"once-for-all network: going on from step {first_step}")
    step = shrinking.make_step(
        space,
        pipeline.full,
        optimizer=optimizer,
        objective=_objective(config),
        sampling=shrinking.SAMPLINGS[config.sampling],
        starts=starts,
    )

    def batches(first: int) -> Iterable[data.Batch]:
        return dataset.train_batches("train", batch_size=config.batch_size, first_step=first, augmented=True)

    example = {name: jax.ShapeDtypeStruct(v.shape, v.dtype) for name, v in next(iter(batches(0))).items()}
    compiled = runtime.compile_step(step, mesh, jax.eval_shape(lambda: state), example)
    sharding = runtime.split_batch(mesh)
    with (
        runtime.stop_on_signals() as stop,
        progress.Recorder(
            directory / runs.METRICS,
            title="once-for-all network",
            quality=quality.accuracy.name,
            first_step=first_step,
            total_steps=steps,
            console=pipeline.console,
        ) as recorder,
    ):
        state = loop.run(
            state,
            step=compiled,
            batches=((runtime.place_batch(batch, sharding),) for batch in batches(first_step)),
            first_step=first_step,
            total_steps=steps,
            before_step=shrinking.before_steps(space, starts),
            log_every=config.log_every,
            checkpoint_every=config.checkpoint_every,
            checkpoints=checkpoints,
            recorder=recorder,
            policy_probabilities=lambda _: np.zeros((0, 0)),
            stop=stop,
        )
    checkpoints.close()
    measure = accuracy.make_float_accuracy(space, pipeline.full)
    found = measure_data(pipeline, dataset)
    ends = {"largest": space.largest, "smallest": space.smallest}
    pipeline.write(
        f"{SUPERNET}/{SUMMARY}",
        {
            "steps": steps,
            "seconds": round(recorder.seconds, 1),
            "state_sha256": runtime.state_digest(state),
            "validation_accuracy": {
                name: measure(state.params, state.batch_stats, found, jnp.asarray(genome))
                for name, genome in ends.items()
            },
        },
    )


def read_supernet(pipeline: Pipeline) -> ShrinkingState:
    """The once-for-all network after training.

    Raises:
      ConfigError: it is not trained.
    """
    pipeline.read(f"{SUPERNET}/{SUMMARY}")
    checkpoints = runtime.Checkpoints(pipeline.workdir / SUPERNET / "checkpoints")
    like = jax.device_put(_supernet_state(pipeline)[0], runtime.replicated(runtime.data_mesh()))
    restored = checkpoints.restore(like, say=pipeline.note)
    checkpoints.close()
    if restored is None:
        raise ConfigError(f"{pipeline.workdir / SUPERNET} has no checkpoint")
    return restored[1]


# Records.


def measure_data(pipeline: Pipeline, dataset: data.Dataset) -> accuracy.Data:
    """The batches that every record is made with."""
    config = pipeline.config.records

    def some(count: int, first_step: int, *, augmented: bool) -> list[data.Batch]:
        stream = dataset.train_batches(
            "train", batch_size=config.batch_size, first_step=first_step, augmented=augmented
        )
        return list(itertools.islice(stream, count))

    return accuracy.Data(
        calibration=some(config.calibration_batches, 0, augmented=False),
        training=some(config.fine_tuning_steps, config.calibration_batches, augmented=True),
        validation=list(dataset.eval_batches("valid", batch_size=config.batch_size)),
    )


def collect_records(pipeline: Pipeline) -> None:
    """Measures as many networks as the config says, of each kind; those that are there are not measured again."""
    config, space, full = pipeline.config.records, pipeline.space, pipeline.full
    supernet_digest = pipeline.read(f"{SUPERNET}/{SUMMARY}")["state_sha256"]
    keys = jax.random.split(jax.random.key(pipeline.config.seed + 1))
    wanted = {
        "float": records.float_genomes(space, config.float, keys[0]),
        "quantized": records.quantized_genomes(space, config.quantized, keys[1], policies=config.policies),
    }
    measures = {
        "float": lambda: accuracy.make_float_accuracy(space, full),
        "quantized": lambda: accuracy.make_quantized_accuracy(
            space,
            full,
            optimizer=optax.sgd(config.fine_tuning_rate, momentum=0.9),
            loss=losses.cross_entropy(pipeline.config.supernet.label_smoothing),
        ),
    }
    state, found = None, None
    for kind, genomes in wanted.items():
        # How many there are to be is no part of what they are: more may be asked for later.
        settings = {key: value for key, value in config.to_dict().items() if key not in RECORD_FILES}
        head = {"kind": kind, "supernet_sha256": supernet_digest, "settings": settings}
        file = RecordFile(pipeline.workdir / RECORD_FILES[kind], head)
        left = genomes[len(file.records) :]
        if not len(left):
            pipeline.note(f"already complete: {len(file.records)} {kind} records")
        else:
            if state is None or found is None:
                state, found = read_supernet(pipeline), measure_data(pipeline, open_data(pipeline))
            measure = measures[kind]()
            for genome in track(left, f"{kind} records", console=pipeline.console):
                reached = measure(state.params, state.batch_stats, found, jnp.asarray(genome))
                file.append([Record(genome, reached)])
        file.close()


def read_records(pipeline: Pipeline, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Genomes int32[N, D] and accuracies float32[N].

    Raises:
      records.RecordError: none are there, or a line is damaged.
    """
    _, found = records.read(pipeline.workdir / RECORD_FILES[kind])
    if not found:
        raise records.RecordError(f"{pipeline.workdir / RECORD_FILES[kind]} holds no records")
    return np.stack([r.genome for r in found]), np.asarray([r.accuracy for r in found], np.float32)


# Predictors.


def fit_predictors(pipeline: Pipeline) -> None:
    """Fits the float predictor, transfers it, and compares with one from scratch at several numbers of records."""
    if pipeline.done(f"{PREDICTOR}/{SUMMARY}"):
        return
    config, space = pipeline.config.predictor, pipeline.space
    features = jax.jit(space.features)
    architecture = space.architecture_features
    fit = partial(
        predictor.fit,
        steps=config.steps,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
    )
    keys = jax.random.split(jax.random.key(pipeline.config.seed + 2), 4)
    float_genomes, float_accuracies = read_records(pipeline, "float")
    float_features = features(float_genomes)[:, :architecture]
    split = max(len(float_genomes) // 10, 1)
    fresh = predictor.init(architecture, float_accuracies, keys[0], hidden=config.hidden)
    of_float = fit(fresh, float_features[split:], float_accuracies[split:], keys[1])
    float_agreement = predictor.agreement(predictor.predict(of_float, float_features[:split]), float_accuracies[:split])

    genomes, accuracies = read_records(pipeline, "quantized")
    quantized = features(genomes)
    held, train = slice(0, config.held_out), slice(config.held_out, None)
    seen, reached = quantized[train], accuracies[train]

    def fitted(count: int, *, transfer: bool) -> Predictor:
        start = (
            predictor.transferred(of_float, quantized.shape[1])
            if transfer
            else predictor.init(quantized.shape[1], reached[:count], keys[2], hidden=config.hidden)
        )
        return fit(start, seen[:count], reached[:count], keys[3])

    def agreement(found: Predictor) -> dict[str, float]:
        return predictor.agreement(predictor.predict(found, quantized[held]), accuracies[held])._asdict()

    curve = []
    counts = [count for count in config.counts if count < len(seen)]
    for count in track(counts, "predictors", console=pipeline.console):
        curve.append(
            {
                "records": count,
                "transferred": agreement(fitted(count, transfer=True)),
                "from_scratch": agreement(fitted(count, transfer=False)),
            }
        )
    final = fitted(len(seen), transfer=True)
    curve.append(
        {
            "records": len(seen),
            "transferred": agreement(final),
            "from_scratch": agreement(fitted(len(seen), transfer=False)),
        }
    )
    (pipeline.workdir / PREDICTOR).mkdir(exist_ok=True)
    save_file(_flat(final), pipeline.workdir / PREDICTOR / "predictor.safetensors")
    pipeline.write(
        f"{PREDICTOR}/{SUMMARY}",
        {"float": float_agreement._asdict() | {"records": len(float_genomes) - split}, "quantized": curve},
    )


def _flat(found: Predictor) -> dict[str, np.ndarray]:
    layers = {
        f"{number}.{name}": np.asarray(value)
        for number, layer in enumerate(found.layers)
        for name, value in layer._asdict().items()
    }
    return layers | {"mean": np.asarray(found.mean), "deviation": np.asarray(found.deviation)}


def read_predictor(pipeline: Pipeline) -> Predictor:
    """The predictor of quantised accuracies.

    Raises:
      ConfigError: it is not fitted.
    """
    pipeline.read(f"{PREDICTOR}/{SUMMARY}")
    flat = load_file(pipeline.workdir / PREDICTOR / "predictor.safetensors")
    layers = tuple(
        Dense(jnp.asarray(flat[f"{number}.kernel"]), jnp.asarray(flat[f"{number}.bias"]))
        for number in range(len(flat) // 2 - 1)
    )
    return Predictor(layers, jnp.asarray(flat["mean"]), jnp.asarray(flat["deviation"]))


# The search.


def predicted_accuracy(space: ArchitectureSpace, found: Predictor, genomes: jax.Array) -> jax.Array:
    """Predicted accuracies, float32[P], of genomes, int32[P, D]."""
    return predictor.predict(found, space.features(genomes))


def search(pipeline: Pipeline) -> None:
    """Finds the best genome for each set of budgets, all in one compiled call.

    Raises:
      ConfigError: no budgets.
      evolution.BudgetError: one that no network meets.
    """
    if not pipeline.budgets:
        raise ConfigError("no budgets: give --budget=NAME=VALUE or --config.search.budgets")
    asked = [dict(each) for each in pipeline.budgets]
    if (pipeline.workdir / SEARCH).exists() and pipeline.read(SEARCH)["budgets"] == asked:
        pipeline.note(f"already complete: {pipeline.workdir / SEARCH}")
        return
    config, space = pipeline.config.search, pipeline.space
    fitness = Partial(partial(predicted_accuracy, space), read_predictor(pipeline))
    tables = pipeline.tables
    settings = evolution.Settings(config.population, config.parents, config.mutation, config.generations)
    evolve = evolution.make(space, tables, settings).evolve
    limits = np.asarray([list(each.values()) for each in asked])
    seconds = []
    for _ in ("compiling and searching", "searching"):
        start = time.perf_counter()
        result = evolve(fitness, limits, jax.random.key(pipeline.config.seed + 3))
        seconds.append(time.perf_counter() - start)
    bit_operations = space.cost_table(COSTS[BIT_OPERATIONS])
    genomes = np.asarray(space.canonical(jnp.asarray(result.genome)))
    costs = np.stack([evolution.verify(tables, g, limit) for g, limit in zip(genomes, limits, strict=True)])
    found = [
        {
            "budget": budget,
            "costs": dict(zip(tables, cost.tolist(), strict=True)),
            BIT_OPERATIONS: table_lib.price_exactly(bit_operations, genome),
            "predicted_accuracy": float(reached),
            "choices": space.search_space.decode(genome),
        }
        for budget, cost, genome, reached in zip(asked, costs, genomes, result.fitness[:, 0], strict=True)
    ]
    pipeline.write(
        SEARCH,
        {
            "budgets": asked,
            "units": {name: find_cost(name).unit for name in tables},
            "seconds": round(seconds[1], 3),
            "seconds_with_compilation": round(seconds[0], 3),
            "found": found,
            "history": np.round(result.history, 6)[:, :: max(config.generations // 100, 1)].tolist(),
        },
    )
    pipeline.note(f"{len(asked)} networks found in {seconds[1]:.2f} s ({seconds[0]:.2f} s with compilation)")
