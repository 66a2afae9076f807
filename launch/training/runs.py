"""Runs of an experiment: trains and evaluates its trials in run directories, and resumes interrupted ones."""

import contextlib
import dataclasses
import json
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from rich.console import Console

from aqt_like import interception
from aqt_like.frozen_network import FrozenNetwork
from fliqs_jax import random_search
from fliqs_jax.evaluation import make_profile_clip_multiples
from fliqs_jax.losses import Batch
from fliqs_jax.models import pretrained
from fliqs_jax.policy import init_policy
from fliqs_jax.search import SearchState, freeze_genomes, make_search_step, settled_genomes
from hwcost import carbon, pricing
from hwcost.genome_file import write_genome
from launch import data
from launch.data.example_checks import check_batch, check_evaluation_batch, check_present
from launch.one_writer import only_writer
from launch.training import finished, found_network, loop, progress
from launch.training.budgets import ABSOLUTE
from launch.training.checkpoints import Checkpoints, state_digest
from launch.training.controllers import reward_of
from launch.training.experiment import RANDOM_SEARCH, SEARCHED, Experiment, Trial
from launch.training.interruption import StopRequested, stop_on_signals
from launch.training.mesh import compile_step, data_mesh, place_batch, replicated, split_batch
from launch.training.provenance import inputs_of
from launch.training.run_directory import (
    CHECKPOINTS,
    CODE,
    GENOME,
    METRICS,
    NETWORK,
    SUMMARY,
    Inputs,
    check_inputs,
    claim_directory,
    read_inputs,
    write_json,
)
from launch.training.run_summary import environment_summary, network_summary
from launch.training.teaching import read_teacher


@dataclasses.dataclass(frozen=True)
class Compiled:
    """Compiled functions of an experiment, shared by all of its trials.

    Attributes:
      mesh: devices.
      teach: adds the logits of the teacher to a training batch; identity if the experiment has no teacher.
      initial: see `finished.make_initial_state`.
      step: search step, compiled ahead of time.
      networks: freezes, recalibrates and evaluates.
      profile: see `make_profile_clip_multiples`; None if clip multiples are not profiled on a batch.
      step_compilations: returns the number of compilations of the search step so far.
      seconds: compile time of the search step.
    """

    mesh: jax.sharding.Mesh
    teach: Callable[[Batch], Batch]
    initial: Callable[[Trial], SearchState]
    step: jax.stages.Compiled
    networks: finished.Networks
    profile: Callable | None
    step_compilations: Callable[[], int]
    seconds: float


def compile_functions(experiment: Experiment, dataset: data.Dataset, teach: Callable[[Batch], Batch]) -> Compiled:
    """Compiles the search step for all devices and for batches of `dataset` with what `teaching.read_teacher` adds.

    Raises:
      DataError: a first batch of a split is not as its source says.
      ValueError: loss or quality do not take the batches; a network cannot be frozen.
    """
    mesh = data_mesh()
    whole = replicated(mesh)
    search, config, criterion = experiment.search, experiment.config, experiment.clip_criterion
    search_step = make_search_step(search)
    traces: list[None] = []

    def counted_step(*arguments: Any) -> Any:
        traces.append(None)  # A function is traced once per compilation.
        return search_step(*arguments)

    def example(split: str, size: int, *, augmented: bool) -> dict[str, Any]:
        batch = next(dataset.train_batches(split, batch_size=size, first_step=0, augmented=augmented))
        check_batch(split, batch, experiment.source.example, experiment.task.labels)
        return jax.tree.map(lambda values: jax.ShapeDtypeStruct(values.shape, values.dtype), batch)

    train_example = jax.eval_shape(teach, example("train", config.batch_size, augmented=True))
    valid_example = example("valid", config.valid_batch_size, augmented=False)
    evaluated = next(iter(dataset.eval_batches("test", batch_size=config.valid_batch_size)), None)
    check_evaluation_batch("test", evaluated, experiment.source.example, experiment.task.labels)
    experiment.task.check(train_example)
    networks = finished.Networks(experiment, dataset)
    networks.check()
    start = time.perf_counter()
    initial = finished.make_initial_state(experiment)
    state = jax.eval_shape(lambda: initial(experiment.trials[0]))
    step = compile_step(counted_step, mesh, state, train_example, valid_example)
    return Compiled(
        mesh=mesh,
        teach=teach,
        initial=initial,
        step=step,
        networks=networks,
        profile=criterion
        and jax.jit(make_profile_clip_multiples(search, criterion), donate_argnums=0, out_shardings=whole),
        step_compilations=lambda: len(traces),
        seconds=time.perf_counter() - start,
    )


def open_data(experiment: Experiment) -> data.Dataset:
    """Opens the data set of an experiment.

    Raises:
      DataError: it cannot be read, or a split lacks labels without which the quality means nothing.
    """
    config = experiment.config
    dataset = experiment.source.open(valid_examples=config.data.valid_examples, seed=config.seed)
    check_present(dataset, config.valid_batch_size, experiment.task.labels)
    return dataset


def _with_pretrained_weights(run: "_TrialRun", state: SearchState) -> Any:
    """Replaces the weights by those of `config.init_from`; the optimiser state stays the initial one."""
    config = run.trial.config
    path, model = pathlib.Path(config.init_from), config.model.name
    ours = {"params": state.params, "batch_stats": state.batch_stats}
    theirs, kept = pretrained.load(path, model, ours, prefix=config.init_prefix, anew=config.init_anew)
    run.say(f"weights from {config.init_from}" + (f", but for {', '.join(kept)}" if kept else ""))
    if pretrained.takes_half_ranges(path, model):
        if normalization := getattr(run.dataset, "normalization", None):
            theirs = pretrained.for_inputs(theirs, normalization["mean"], normalization["deviation"])
            run.say("published for inputs of -1…1; the first layer is adapted to the mean and deviation of the data")
        else:
            run.say("published for inputs of (pixels / 255 - 0.5) / 0.5, which the data have to give")
    placed = jax.tree.map(lambda new, old: jax.device_put(new, old.sharding), theirs, ours)
    return state._replace(**placed)


def run(experiment: Experiment, workdir: pathlib.Path, console: Console) -> list[pathlib.Path]:
    """Runs all trials, see `run_all`; SIGTERM or SIGINT stops them after a checkpoint."""
    with stop_on_signals() as stop:
        return run_all(experiment, workdir, console, stop)


def run_all(experiment: Experiment, workdir: pathlib.Path, console: Console, stop: StopRequested) -> list[pathlib.Path]:
    """Runs all unfinished trials of an experiment; returns the run directories of all trials.

    Raises:
      ConfigError: a directory belongs to another config, or to other inputs.
      one_writer.BusyError: another process writes to a directory.
      loop.NotFiniteError, loop.Stopped: see `loop.run`.
    """
    say = progress.plainly(console)
    inputs = []
    with contextlib.ExitStack() as locks:
        for trial in experiment.trials:
            directory = workdir / trial.directory
            locks.enter_context(only_writer(directory, say))
            inputs.append(inputs_of(trial.config, experiment.source))
            # Where a run goes on, its checkpoints are compared before its code: they tell the shapes that differ.
            code = [key for key in inputs[-1] if key.startswith(CODE) and not (directory / SUMMARY).exists()]
            claim_directory(directory, trial.config, inputs[-1], say=say, later=code)
        return _run_unfinished(experiment, workdir, inputs, console, stop)


def _run_unfinished(
    experiment: Experiment, workdir: pathlib.Path, inputs: Sequence[Inputs], console: Console, stop: StopRequested
) -> list[pathlib.Path]:
    directories = [workdir / trial.directory for trial in experiment.trials]
    unfinished = [
        (trial, directory, digests)
        for trial, directory, digests in zip(experiment.trials, directories, inputs, strict=True)
        if not all((place / SUMMARY).exists() for place in _places(experiment, trial, directory))
    ]
    if len(unfinished) < len(directories):
        done = ", ".join(t.name for t in experiment.trials if all(t is not trial for trial, *_ in unfinished))
        console.print(f"already complete in {workdir}: {done}", markup=False)
    if unfinished:
        for remark in experiment.remarks():
            console.print(remark, soft_wrap=True, markup=False, highlight=False)
        console.print(f"reading {experiment.config.data.name}, compiling the search step …")
        dataset = open_data(experiment)
        if remark := getattr(dataset, "remark", ""):
            console.print(remark, soft_wrap=True, markup=False, highlight=False)
        teach = read_teacher(experiment, dataset, console)
        compiled = compile_functions(experiment, dataset, teach)
        console.print(f"compiled in {compiled.seconds:.1f} s for {len(jax.devices())} device(s)")
        if remark := experiment.arithmetic.remark():
            console.print(remark)
        for trial, directory, digests in unfinished:
            _run(_TrialRun(experiment, trial, compiled, dataset, directory, digests, console), stop)
    pairs = zip(experiment.trials, directories, strict=True)
    return [place for trial, directory in pairs for place in _places(experiment, trial, directory)]


def _places(experiment: Experiment, trial: Trial, directory: pathlib.Path) -> list[pathlib.Path]:
    """The directories of the networks that a trial ends with; the trial's own is the first."""
    config = trial.config
    if trial.kind != SEARCHED or not experiment.search.targets:
        return [directory]
    others = [target for target in config.targets if target != config.target]
    return [directory, *(target_directory(directory, config, target) for target in others)]


@dataclasses.dataclass(frozen=True)
class _TrialRun:
    """A trial with everything that is needed to run it."""

    experiment: Experiment
    trial: Trial
    compiled: Compiled
    dataset: data.Dataset
    directory: pathlib.Path
    inputs: Inputs
    console: Console

    def say(self, text: str) -> None:
        """Prints a message with the name of this trial."""
        progress.plainly(self.console)(f"{self.trial.name}: {text}")

    def batches(self, split: str, batch_size: int, *, first_step: int, augmented: bool = False) -> Iterator[Batch]:
        """Endless batches of `"train"` or `"valid"`, split over the devices."""
        stream = self.dataset.train_batches(split, batch_size=batch_size, first_step=first_step, augmented=augmented)
        return (place_batch(batch, split_batch(self.compiled.mesh)) for batch in stream)

    def taught_batches(self, first_step: int) -> Iterator[Batch]:
        """Endless training batches, with the logits of the teacher if there is one."""
        stream = self.batches("train", self.trial.config.batch_size, first_step=first_step, augmented=True)
        return (self.compiled.teach(batch) for batch in stream)


def _run(run: _TrialRun, stop: StopRequested) -> None:
    """Trains a trial, chooses its genomes, and finishes one network per target; that of the work directory last."""
    state, recorder = _train(run, stop)
    trained: dict[str, Any] = {"state_sha256": state_digest(state), "bit_identical_on": recorder.devices}
    if found := run.trial.ends_as:
        run, state = _as_found(run, found, state)
    if run.trial.kind == SEARCHED:
        search = run.experiment.search
        trained["scores"] = _scores(run.experiment, state)
        trained["frozen_from_step"] = min(search.freeze_step, search.total_steps)
    genomes = _chosen_genomes(run, state)
    targets = [_of_target(run, number) for number in range(len(genomes))]
    for number in sorted(range(len(targets)), key=lambda number: targets[number].directory == run.directory):
        entropy = {"policy_entropy": float(state.policy(number).entropy())}
        _finish(targets[number], state, genomes[number], recorder.seconds, trained | entropy)


def _scores(experiment: Experiment, state: SearchState) -> list[list[float]]:
    """The controller's score of each option of each decision, to four digits."""
    scores = np.asarray(experiment.search.controller.scores(state.controller, state.step))
    counts = experiment.plan.space.option_counts
    return [[float(f"{score:.4g}") for score in row[:count]] for row, count in zip(scores, counts, strict=True)]


def _of_target(run: _TrialRun, number: int) -> _TrialRun:
    """The run of one of the targets that were trained in turn, with its budgets and in its directory."""
    search, config = run.experiment.search, run.trial.config
    if not search.targets or run.trial.kind != SEARCHED:
        return run
    own = config.copy_and_resolve_references()
    own.target = float(config.targets[number])
    unit = "" if config.target_unit == ABSOLUTE else f" × {config.target_unit}"
    experiment = dataclasses.replace(
        run.experiment, config=own, search=dataclasses.replace(search, budgets=search.budgets_of(number), targets=())
    )
    trial = dataclasses.replace(run.trial, name=f"{run.trial.name}, {own.target:g}{unit}", config=own)
    directory = target_directory(run.directory, config, own.target)
    claim_directory(directory, own, run.inputs, say=progress.plainly(run.console))
    return dataclasses.replace(run, experiment=experiment, trial=trial, directory=directory)


def target_directory(directory: pathlib.Path, config: ConfigDict, target: float) -> pathlib.Path:
    """Where the network of one of several targets is: that of `config.target` where the run is, others below."""
    return directory if target == config.target else directory / f"target-{target:g}"


def _finish(run: _TrialRun, state: SearchState, genome: jax.Array, seconds: float, trained: dict[str, Any]) -> None:
    """Freezes, recalibrates and evaluates the network of a genome, int32[D], and writes all of it."""
    experiment, own_genome = run.experiment, np.asarray(genome)
    write_genome(run.directory / GENOME, experiment.plan.named(own_genome))
    if experiment.search.family:
        run, state, genome = _cut_out(run, state, own_genome)
    networks = run.compiled.networks
    if experiment.search.model.train_streams:
        state = networks.profiled(state, genome)  # Where some values are dropped, the others are larger.
    network = networks.frozen(state, genome)
    before = networks.quality(networks.variables(network), "test")
    network = networks.recalibrated(network)
    network.save(run.directory / NETWORK)
    finished.write_weights(run.directory, state._replace(batch_stats=network.variables["batch_stats"]))
    summary = _summary(run, dataclasses.replace(experiment, survey=run.experiment.survey), own_genome, seconds)
    trained = {**trained, f"{experiment.search.quality.name}_before_recalibration": before}
    write_json(run.directory / SUMMARY, summary | trained)


def _cut_out(run: _TrialRun, state: SearchState, genome: np.ndarray) -> tuple[_TrialRun, SearchState, jax.Array]:
    """The network of a searched architecture as a run of its own, with its state, and its genome of formats alone."""
    found = found_network.experiment_of(run.experiment, run.directory / GENOME)
    (trial,) = found.trials
    state = found_network.cut_out(run.experiment, state, genome, finished.initial_state(found, trial))
    networks = finished.Networks(found, run.dataset)
    formats = jnp.asarray(trial.genome)
    compiled = dataclasses.replace(run.compiled, networks=networks)
    return dataclasses.replace(run, experiment=found, compiled=compiled), networks.profiled(state, formats), formats


def _as_found(run: _TrialRun, found: Experiment, state: SearchState) -> tuple[_TrialRun, SearchState]:
    """The run of the network that was trained as a part of a larger one, with its state."""
    assert run.trial.genome is not None
    (trial,) = found.trials
    policy = init_policy(found.plan.space, "fixed", trial.genome)
    state = found_network.cut_out(run.experiment, state, run.trial.genome, state)
    state = state._replace(policies=jax.tree.map(lambda leaf: leaf[None], policy))
    compiled = dataclasses.replace(run.compiled, networks=finished.Networks(found, run.dataset))
    return dataclasses.replace(run, experiment=found, trial=trial, compiled=compiled), state


def _costs_of_found(found: Experiment | None) -> dict[str, float]:
    """The metrics of a network's own budgets, which are not those of the larger one that it is trained in."""
    if found is None:
        return {}
    (trial,) = found.trials
    assert trial.genome is not None
    costs = [pricing.price_exactly(budget.table, trial.genome) for budget in found.search.budgets]
    ratios = [cost / budget.target for cost, budget in zip(costs, found.search.budgets, strict=True)]
    return {"cost": costs[0], "relative_cost": max(ratios)}


def _train(run: _TrialRun, stop: StopRequested) -> tuple[SearchState, progress.Recorder]:
    """Trains from the newest checkpoint or from the start; returns the last state, and what recorded the time."""
    config, search, compiled = run.trial.config, run.experiment.search, run.compiled
    checkpoints = Checkpoints(run.directory / CHECKPOINTS)
    state = jax.device_put(compiled.initial(run.trial), replicated(compiled.mesh))
    first_step = 0
    if restored := checkpoints.restore(state, say=run.say):
        first_step, state = restored
        check_inputs(run.directory, read_inputs(run.directory) or run.inputs, run.inputs)
        run.say(f"going on from step {first_step}")
    elif config.init_from:
        state = _with_pretrained_weights(run, state)
    costs = _costs_of_found(run.trial.ends_as)

    def step_fn(state: SearchState, *batches: Batch) -> tuple[SearchState, Mapping[str, Any]]:
        state, metrics = compiled.step(state, *batches)
        return state, {**metrics, **costs}

    inputs_from = search.input_quantization_step
    shown = list(config.targets).index(config.target) if search.targets else 0

    def before_inputs(state: SearchState) -> SearchState:
        _check_inputs(run, state)
        if (profile := compiled.profile) and first_step <= inputs_from:
            return profile(state, next(run.taught_batches(inputs_from)))
        return state

    def freeze(state: SearchState) -> SearchState:
        return freeze_genomes(search, state)

    before_step: dict[int, Callable[[Any], Any]] = {}
    for begins, change in ((inputs_from, before_inputs), (search.freeze_step, freeze)):
        step = max(first_step, begins)
        before_step[step] = _in_turn(before_step[step], change) if step in before_step else change
    valid_batches = run.batches("valid", config.valid_batch_size, first_step=first_step)
    with progress.Recorder(
        run.directory / METRICS,
        title=run.trial.name,
        quality=search.quality.name,
        first_step=first_step,
        total_steps=search.total_steps,
        console=run.console,
    ) as recorder:
        state = loop.run(
            state,
            step=step_fn,
            batches=zip(run.taught_batches(first_step), valid_batches, strict=True),
            first_step=first_step,
            total_steps=search.total_steps,
            before_step=before_step,
            saving=loop.Saving(
                recorder=recorder,
                log_every=config.log_every,
                policy_probabilities=lambda state: np.asarray(jax.nn.softmax(state.policy(shown).logits)),
                checkpoints=checkpoints,
                checkpoint_every=config.checkpoint_every,
            ),
            stop=stop,
        )
    if inputs_from >= search.total_steps:
        _check_inputs(run, state)
    return state, recorder


def _in_turn(first: Callable[[Any], Any], second: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda state: second(first(state))


def _check_inputs(run: _TrialRun, state: SearchState) -> None:
    """Checks that there is a profile of each input that is to be quantised, and tells what is doubtful.

    Raises:
      interception.ProfileError: an input was never profiled.
    """
    search = run.experiment.search
    profile = interception.stacked_calibration(search.paths, state.calibration)
    for doubt in interception.check_profile(search.paths, profile, batches=min(int(state.step), search.profile_steps)):
        run.say(doubt)


def _chosen_genomes(run: _TrialRun, state: SearchState) -> list[jax.Array]:
    """What a search settled on for each target, or the one genome of another trial, int32[D] each."""
    search, networks = run.experiment.search, run.compiled.networks
    if run.trial.kind != RANDOM_SEARCH:
        genomes = [jnp.asarray(genome) for genome in settled_genomes(search, state)]
        return genomes if run.trial.kind == SEARCHED else genomes[:1]
    reward, gamma = reward_of(run.trial.config)
    best = random_search.best_of_random(
        search,
        state,
        lambda genome: networks.quality(networks.variables_of_genome(state, genome), "valid"),
        jax.random.fold_in(state.key, search.total_steps),
        reward=reward,
        gamma=gamma,
        **run.trial.config.random_search,
    )
    return [best]


def _summary(run: _TrialRun, experiment: Experiment, genome: np.ndarray, seconds: float) -> dict[str, Any]:
    """Summary of a finished trial of an experiment; qualities are those of the network in its file."""
    config, compiled, name = run.trial.config, run.compiled, experiment.search.quality.name
    networks = compiled.networks
    variables = networks.variables(FrozenNetwork.load(run.directory / NETWORK))
    return {
        name: networks.quality(variables, "test"),
        **network_summary(experiment, genome),
        "name": run.trial.name,
        "kind": run.trial.kind,
        "policy": config.policy,
        "quality": name,
        f"validation_{name}": networks.quality(variables, "valid"),
        "seconds": round(seconds, 1),
        "footprint": carbon.footprint(seconds, carbon.Rates(**config.footprint))._asdict(),
        "steps_per_second": round(experiment.search.total_steps / seconds, 2) if seconds else 0.0,
        "compile_seconds": round(compiled.seconds, 1),
        "search_step_compilations": compiled.step_compilations(),
        "seed": config.seed,
        "config": json.loads(config.to_json_best_effort()),
        "inputs": read_inputs(run.directory),
        **environment_summary(),
    }
