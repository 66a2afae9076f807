"""Runs of an experiment: trained, evaluated, and written to directories that an interrupted run goes on from."""

import dataclasses
import importlib.metadata
import itertools
import json
import pathlib
import platform
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict
from rich.console import Console

from aqt_like import calibration
from aqt_like.formats import parse_layer_format
from fliqs_jax import random_search
from fliqs_jax.distillation import TEACHER_LOGITS
from fliqs_jax.losses import Batch
from fliqs_jax.models import pretrained
from fliqs_jax.policy import init_policy
from fliqs_jax.search import (
    SearchState,
    init_state,
    make_evaluate,
    make_logits,
    make_profile_clip_multiples,
    make_recalibrate,
    make_search_step,
    quality_over,
)
from hwcost import carbon, pricing
from launch import data
from launch.training import loop, progress
from launch.training.checkpoints import Checkpoints, state_digest
from launch.training.experiment import ConfigError, Experiment, Trial, prepare_experiment
from launch.training.interruption import StopRequested, stop_on_signals
from launch.training.mesh import compile_step, data_mesh, place_batch, replicated, split_batch

SUMMARY = "summary.json"
CONFIG = "config.json"
METRICS = "metrics.jsonl"
GENOME = "genome.json"

# Keys that say how a run is done, not what it computes: they may change when a run is resumed.
_FREE_KEYS = (
    "data.data_dir",
    "data.download",
    "data.file",
    "data.workers",
    *(f"footprint.{key}" for key in carbon.Rates._fields),
    "baselines",
    "log_every",
    "checkpoint_every",
)


@dataclasses.dataclass(frozen=True)
class Compiled:
    """The functions of an experiment, which serve all of its trials.

    Attributes:
      mesh: the devices.
      teach: adds the teacher's logits to a training batch, where the experiment has a teacher.
      step: the search step, compiled ahead of time.
      recalibrate, evaluate, profile: see `fliqs_jax.search`; they compile when first called.
      step_compilations: how often the search step was compiled so far.
      seconds: what that took.
    """

    mesh: jax.sharding.Mesh
    teach: Callable[[Batch], Batch]
    step: Callable
    recalibrate: Callable
    evaluate: Callable
    profile: Callable
    step_compilations: Callable[[], int]
    seconds: float


def read_run(directory: pathlib.Path, console: Console, *, target: float | None = None) -> tuple[Experiment, Any]:
    """The experiment of a finished run, under another cost target if one is given, and its state after training.

    Raises:
      ConfigError, runtime.CheckpointError: no finished run, or one that cannot be read.
    """
    try:
        config = ConfigDict(json.loads((directory / CONFIG).read_text()))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{directory} holds no run: {error}") from error
    if not (directory / SUMMARY).exists():
        raise ConfigError(f"{directory} holds a run that is not finished: the command that started it goes on with it")
    if target is not None:
        config.target = target
    experiment = prepare_experiment(config)
    checkpoints = Checkpoints(directory / "checkpoints")
    restored = checkpoints.restore(initial_state(experiment, experiment.trials[0]), say=console.print)
    checkpoints.close()
    if restored is None:
        raise ConfigError(f"{directory} has no checkpoint")
    return experiment, restored[1]


def _teacher(experiment: Experiment, console: Console) -> Callable[[Batch], Batch]:
    """A function that adds the teacher's logits to a batch; one that adds nothing where there is no teacher."""
    name = experiment.config.distillation.teacher
    if not name:
        return lambda batch: batch
    taught, state = read_run(pathlib.Path(name), console)
    theirs = (taught.source.example.shape, taught.source.classes)
    ours = (experiment.source.example.shape, experiment.source.classes)
    if theirs != ours:
        raise ConfigError(f"distillation.teacher={name!r} knows inputs and classes {theirs}, here they are {ours}")
    genome = state.policy.mode()
    logits = jax.jit(make_logits(taught.search))
    return lambda batch: batch | {TEACHER_LOGITS: logits(state, genome, batch["input"])}


def compile_functions(experiment: Experiment, dataset: data.Dataset, console: Console) -> Compiled:
    """Compiles the search step for all local devices and batches as those of `dataset`."""
    mesh = data_mesh()
    whole = replicated(mesh)
    search, config = experiment.search, experiment.config
    search_step = make_search_step(search)
    traces: list[None] = []

    def counted_step(*arguments: Any) -> Any:
        traces.append(None)  # A function is traced once for each compilation.
        return search_step(*arguments)

    def example(split: str, size: int, *, augmented: bool) -> dict[str, jax.ShapeDtypeStruct]:
        batch = next(dataset.train_batches(split, batch_size=size, first_step=0, augmented=augmented))
        return {name: jax.ShapeDtypeStruct(values.shape, values.dtype) for name, values in batch.items()}

    teach = _teacher(experiment, console)
    train_example = jax.eval_shape(teach, example("train", config.batch_size, augmented=True))
    valid_example = example("valid", config.valid_batch_size, augmented=False)
    start = time.perf_counter()
    state = jax.eval_shape(lambda: initial_state(experiment, experiment.trials[0]))
    step = compile_step(counted_step, mesh, state, train_example, valid_example)
    return Compiled(
        mesh=mesh,
        teach=teach,
        step=step,
        recalibrate=jax.jit(make_recalibrate(search), donate_argnums=0, out_shardings=whole),
        evaluate=jax.jit(make_evaluate(search)),
        profile=jax.jit(
            make_profile_clip_multiples(
                search, calibration.CRITERIA.get(config.clip.source, calibration.best_multiples)
            ),
            donate_argnums=0,
            out_shardings=whole,
        ),
        step_compilations=lambda: len(traces),
        seconds=time.perf_counter() - start,
    )


def open_data(experiment: Experiment) -> data.Dataset:
    """The data of an experiment."""
    config = experiment.config
    return experiment.source.open(valid_examples=config.data.valid_examples, seed=config.seed)


def initial_state(experiment: Experiment, trial: Trial) -> SearchState:
    """The state in which a trial starts; that of its neighbours but for the policy."""
    return init_state(
        experiment.search,
        init_policy(experiment.plan.space, trial.config.policy, trial.genome),
        experiment.clip_multiples,
        jax.random.key(trial.config.seed),
        jnp.zeros((1, *experiment.source.example.shape), experiment.source.example.dtype),
    )


def _pretrained(state: SearchState, config: ConfigDict, name: str, console: Console) -> Any:
    """The state with the weights of `config.init_from`; fresh moments of the optimiser stay what they are, zeros."""
    ours = {"params": state.params, "batch_stats": state.batch_stats}
    theirs, kept = pretrained.load(pathlib.Path(config.init_from), config.model.name, ours)
    console.print(f"{name}: weights from {config.init_from}" + (f", but for {', '.join(kept)}" if kept else ""))
    placed = jax.tree.map(lambda new, old: jax.device_put(new, old.sharding), theirs, ours)
    return state._replace(**placed)


def claim_directory(directory: pathlib.Path, config: ConfigDict, *, free: Collection[str] = ()) -> None:
    """Makes `directory` that of `config`.

    Args:
      directory: of the run.
      config: its config.
      free: keys that may differ from what is there, beside those that change no result.

    Raises:
      ConfigError: it is that of another config; the message names the keys that differ.
    """
    ours = json.loads(config.to_json_best_effort())
    path = directory / CONFIG
    if not path.exists():
        directory.mkdir(parents=True, exist_ok=True)
        write_json(path, ours)
        return
    there, here = (flatten_dict(config, sep=".") for config in (json.loads(path.read_text()), ours))
    differing = [
        f"{key} is {there.get(key)!r} there and {here.get(key)!r} here"
        for key in sorted(there.keys() | here.keys())
        if there.get(key) != here.get(key) and key not in (*_FREE_KEYS, *free)
    ]
    if differing:
        raise ConfigError(f"{directory} holds a run of another config: {'; '.join(differing)}. Use another --workdir")


def write_json(path: pathlib.Path, document: dict[str, Any]) -> None:
    """Atomically: the file is there whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(document, indent=1) + "\n")
    temporary.rename(path)


def run(experiment: Experiment, workdir: pathlib.Path, console: Console) -> list[pathlib.Path]:
    """`run_all`, stopped after a checkpoint by SIGTERM or SIGINT."""
    with stop_on_signals() as stop:
        return run_all(experiment, workdir, console, stop)


def run_all(experiment: Experiment, workdir: pathlib.Path, console: Console, stop: StopRequested) -> list[pathlib.Path]:
    """Runs what is left of an experiment's trials; returns the directories of all."""
    directories = [workdir / trial.directory for trial in experiment.trials]
    for trial, directory in zip(experiment.trials, directories, strict=True):
        claim_directory(directory, trial.config)
    left = [
        (trial, directory)
        for trial, directory in zip(experiment.trials, directories, strict=True)
        if not (directory / SUMMARY).exists()
    ]
    if len(left) < len(directories):
        done = ", ".join(t.name for t in experiment.trials if all(t is not trial for trial, _ in left))
        console.print(f"already complete in {workdir}: {done}")
    if left:
        console.print(f"reading {experiment.config.data.name}, compiling the search step …")
        dataset = open_data(experiment)
        compiled = compile_functions(experiment, dataset, console)
        console.print(f"compiled in {compiled.seconds:.1f} s for {len(jax.devices())} device(s)")
        for trial, directory in left:
            _run(experiment, trial, compiled, dataset, directory, console, stop)
    return directories


def _run(
    experiment: Experiment,
    trial: Trial,
    compiled: Compiled,
    dataset: data.Dataset,
    directory: pathlib.Path,
    console: Console,
    stop: StopRequested,
) -> None:
    """Trains one trial, from its newest checkpoint if it has one, evaluates it and writes its summary."""
    config, search = trial.config, experiment.search
    sharding = split_batch(compiled.mesh)

    def batches(split: str, size: int, *, first_step: int, augmented: bool = False) -> Iterator[Batch]:
        stream = dataset.train_batches(split, batch_size=size, first_step=first_step, augmented=augmented)
        return (place_batch(batch, sharding) for batch in stream)

    def train_batches(first_step: int) -> Iterator[Batch]:
        stream = batches("train", config.batch_size, first_step=first_step, augmented=True)
        return (compiled.teach(batch) for batch in stream)

    checkpoints = Checkpoints(directory / "checkpoints")
    state = jax.device_put(initial_state(experiment, trial), replicated(compiled.mesh))
    first_step = 0
    if restored := checkpoints.restore(state, say=lambda text: console.print(f"{trial.name}: {text}")):
        first_step, state = restored
        console.print(f"{trial.name}: going on from step {first_step}")
    elif config.init_from:
        state = _pretrained(state, config, trial.name, console)
    before_step = {}
    if config.clip.source in calibration.CRITERIA:
        at = search.input_quantization_step
        before_step[at] = lambda state: compiled.profile(state, next(train_batches(at)))
    with progress.Recorder(
        directory / METRICS,
        title=trial.name,
        quality=search.quality.name,
        first_step=first_step,
        total_steps=search.total_steps,
        console=console,
    ) as recorder:
        state = loop.run(
            state,
            step=compiled.step,
            batches=zip(
                train_batches(first_step), batches("valid", config.valid_batch_size, first_step=first_step), strict=True
            ),
            first_step=first_step,
            total_steps=search.total_steps,
            before_step=before_step,
            log_every=config.log_every,
            checkpoint_every=config.checkpoint_every,
            checkpoints=checkpoints,
            recorder=recorder,
            policy_probabilities=lambda state: np.asarray(jax.nn.softmax(state.policy.logits)),
            stop=stop,
        )
    checkpoints.close()
    final_digest = state_digest(state)

    def quality(genome: jax.Array, split: str) -> float:
        whole = dataset.eval_batches(split, batch_size=config.valid_batch_size)
        placed = (place_batch(batch, sharding) for batch in whole)
        return quality_over(search, compiled.evaluate, state, genome, placed)

    if config.policy == "uniform":
        genome = random_search.best_of_random(
            search,
            state,
            lambda genome: quality(genome, "valid"),
            jax.random.fold_in(state.key, search.total_steps),
            **config.random_search,
        )
    else:
        genome = state.policy.mode()
    before_recalibration = quality(genome, "test")
    for batch in itertools.islice(
        batches("train", config.batch_size, first_step=search.total_steps), config.recalibration_batches
    ):
        state = compiled.recalibrate(state, genome, batch)
    experiment.plan.space.save_genome(directory / GENOME, np.asarray(genome))
    name = search.quality.name
    write_json(
        directory / SUMMARY,
        {
            name: quality(genome, "test"),
            **_price(experiment, np.asarray(genome)),
            "name": trial.name,
            "policy": config.policy,
            "quality": name,
            f"{name}_before_recalibration": before_recalibration,
            f"validation_{name}": quality(genome, "valid"),
            "policy_entropy": float(state.policy.entropy()),
            "seconds": round(recorder.seconds, 1),
            "footprint": carbon.footprint(recorder.seconds, carbon.Rates(**config.footprint))._asdict(),
            "steps_per_second": round(search.total_steps / recorder.seconds, 2),
            "compile_seconds": round(compiled.seconds, 1),
            "search_step_compilations": compiled.step_compilations(),
            "state_sha256": final_digest,
            "seed": config.seed,
            "config": json.loads(config.to_json_best_effort()),
            "versions": _versions(),
            "device": f"{len(jax.devices())} × {jax.devices()[0].device_kind}",
        },
    )


def _price(experiment: Experiment, genome: np.ndarray) -> dict[str, Any]:
    """What a genome means and costs, exactly."""
    chosen = experiment.plan.layer_formats(genome)
    budgets = [
        {
            "name": name,
            "unit": model.unit,
            "cost": pricing.price_exactly(budget.table, genome),
            "target": budget.target,
        }
        for (name, model), budget in zip(experiment.costs.items(), experiment.search.budgets, strict=True)
    ]
    main = budgets[0]
    terms = pricing.price_layers(experiment.search.budgets[0].table, genome)
    return {
        "cost": main["cost"],
        "target": main["target"],
        "genome": genome.tolist(),
        "relative_cost": main["cost"] / main["target"],
        "cost_name": main["name"],
        "cost_unit": main["unit"],
        "budgets": budgets,
        "decisions": [{"name": d.name, "options": list(d.options)} for d in experiment.plan.space.decisions],
        "layers": [
            {
                "path": layer.path,
                "format": chosen[layer.path],
                "bits": parse_layer_format(chosen[layer.path]).bits,
                "granularity": experiment.plan.granularity_of.get(layer.path, "per_channel"),
                "macs": layer.macs,
                "weights": layer.weights,
                "cost": cost,
                "cost_is_estimate": next(iter(experiment.costs.values())).estimates(layer),
            }
            for layer, cost in zip(experiment.plan.workload, terms.tolist(), strict=True)
        ],
    }


def _versions() -> dict[str, str]:
    packages = ("jax", "flax", "optax", "orbax-checkpoint", "numpy")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}
