"""Runs of an experiment: trains and evaluates its trials in run directories, and resumes interrupted ones."""

import contextlib
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from rich.console import Console

from aqt_like import interception
from fliqs_jax.losses import Batch
from fliqs_jax.models import pretrained
from fliqs_jax.search import SearchState, freeze_genomes
from hwcost import pricing
from launch.one_writer import only_writer
from launch.training import loop, progress, trial_end
from launch.training.checkpoints import Checkpoints, state_digest
from launch.training.experiment import SEARCHED, Experiment, Trial
from launch.training.interruption import StopRequested, stop_on_signals
from launch.training.mesh import replicated
from launch.training.provenance import inputs_of
from launch.training.run_directory import (
    CHECKPOINTS,
    CODE,
    METRICS,
    SUMMARY,
    Inputs,
    check_inputs,
    claim_directory,
    read_inputs,
)
from launch.training.teaching import read_teacher
from launch.training.trial_end import target_directory
from launch.training.trial_run import TrialRun, compile_functions, open_data


def _with_pretrained_weights(run: TrialRun, state: SearchState) -> Any:
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
            _run(TrialRun(experiment, trial, compiled, dataset, directory, digests, console), stop)
    pairs = zip(experiment.trials, directories, strict=True)
    return [place for trial, directory in pairs for place in _places(experiment, trial, directory)]


def _places(experiment: Experiment, trial: Trial, directory: pathlib.Path) -> list[pathlib.Path]:
    """The directories of the networks that a trial ends with; the trial's own is the first."""
    config = trial.config
    if trial.kind != SEARCHED or not experiment.search.targets:
        return [directory]
    others = [target for target in config.targets if target != config.target]
    return [directory, *(target_directory(directory, config, target) for target in others)]


def _run(run: TrialRun, stop: StopRequested) -> None:
    """Trains a trial, and finishes its networks."""
    state, recorder = _train(run, stop)
    trained = {"state_sha256": state_digest(state), "bit_identical_on": recorder.devices}
    trial_end.finish(run, state, recorder.seconds, trained)


def _costs_of_found(found: Experiment | None) -> dict[str, float]:
    """The metrics of a network's own budgets, which are not those of the larger one that it is trained in."""
    if found is None:
        return {}
    (trial,) = found.trials
    assert trial.genome is not None
    costs = [pricing.price_exactly(budget.table, trial.genome) for budget in found.search.budgets]
    ratios = [cost / budget.target for cost, budget in zip(costs, found.search.budgets, strict=True)]
    return {"cost": costs[0], "relative_cost": max(ratios)}


def _train(run: TrialRun, stop: StopRequested) -> tuple[SearchState, progress.Recorder]:
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


def _check_inputs(run: TrialRun, state: SearchState) -> None:
    """Checks that there is a profile of each input that is to be quantised, and tells what is doubtful.

    Raises:
      interception.ProfileError: an input was never profiled.
    """
    search = run.experiment.search
    profile = interception.stacked_calibration(search.paths, state.calibration)
    for doubt in interception.check_profile(search.paths, profile, batches=min(int(state.step), search.profile_steps)):
        run.say(doubt)
