"""How a trial ends: its genomes are chosen, its networks cut out, frozen, evaluated and written."""

import dataclasses
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from aqt_like.frozen_network import FrozenNetwork
from fliqs_jax import random_search
from fliqs_jax.policy import init_policy
from fliqs_jax.search import SearchState, settled_genomes
from fliqs_jax.weight_averaging import served_weights
from hwcost import carbon
from hwcost.genome_file import write_genome
from launch.training import finished, found_network, progress
from launch.training.budgets import ABSOLUTE
from launch.training.controllers import reward_of
from launch.training.experiment import RANDOM_SEARCH, SEARCHED, Experiment
from launch.training.run_directory import (
    GENOME,
    NETWORK,
    SUMMARY,
    claim_directory,
    read_inputs,
    write_json,
)
from launch.training.run_summary import environment_summary, network_summary
from launch.training.trial_run import TrialRun


def finish(run: TrialRun, state: SearchState, seconds: float, trained: dict[str, Any]) -> None:
    """Chooses the genomes of a trained trial, and finishes one network per target; that of the work directory last.

    Args:
      run: the trial.
      state: as trained.
      seconds: of training.
      trained: what summaries tell of the training.
    """
    state = state._replace(params=served_weights(state.params, state.opt_state))
    if found := run.trial.ends_as:
        run, state = _as_found(run, found, state)
    if run.trial.kind == SEARCHED:
        search = run.experiment.search
        frozen_from = min(search.freeze_step, search.total_steps)
        trained = {**trained, "scores": _scores(run.experiment, state), "frozen_from_step": frozen_from}
    genomes = _chosen_genomes(run, state)
    targets = [_of_target(run, number) for number in range(len(genomes))]
    for number in sorted(range(len(targets)), key=lambda number: targets[number].directory == run.directory):
        entropy = {"policy_entropy": float(state.policy(number).entropy())}
        _finish(targets[number], state, genomes[number], seconds, trained | entropy)


def _scores(experiment: Experiment, state: SearchState) -> list[list[float]]:
    """The controller's score of each option of each decision, to four digits."""
    scores = np.asarray(experiment.search.controller.scores(state.controller, state.step))
    counts = experiment.plan.space.option_counts
    return [[float(f"{score:.4g}") for score in row[:count]] for row, count in zip(scores, counts, strict=True)]


def _of_target(run: TrialRun, number: int) -> TrialRun:
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


def _finish(run: TrialRun, state: SearchState, genome: jax.Array, seconds: float, trained: dict[str, Any]) -> None:
    """Freezes, recalibrates and evaluates the network of a genome, int32[D], and writes all of it."""
    experiment, own_genome = run.experiment, np.asarray(genome)
    write_genome(run.directory / GENOME, experiment.plan.named(own_genome))
    if experiment.search.family:
        run, state, genome = _cut_out(run, state, own_genome)
    networks = run.compiled.networks
    if experiment.search.model.train_streams or run.trial.config.ema:
        # Where some values are dropped, the others are larger; and averaged weights give others.
        state = networks.profiled(state, genome)
    network = networks.frozen(state, genome)
    before = networks.quality(networks.variables(network), "test")
    network = networks.recalibrated(network)
    network.save(run.directory / NETWORK)
    finished.write_weights(run.directory, state._replace(batch_stats=network.variables["batch_stats"]))
    summary = _summary(run, dataclasses.replace(experiment, survey=run.experiment.survey), own_genome, seconds)
    trained = {**trained, f"{experiment.search.quality.name}_before_recalibration": before}
    write_json(run.directory / SUMMARY, summary | trained)


def _cut_out(run: TrialRun, state: SearchState, genome: np.ndarray) -> tuple[TrialRun, SearchState, jax.Array]:
    """The network of a searched architecture as a run of its own, with its state, and its genome of formats alone."""
    found = found_network.experiment_of(run.experiment, run.directory / GENOME)
    (trial,) = found.trials
    state = found_network.cut_out(run.experiment, state, genome, finished.initial_state(found, trial))
    networks = finished.Networks(found, run.dataset)
    formats = jnp.asarray(trial.genome)
    compiled = dataclasses.replace(run.compiled, networks=networks)
    return dataclasses.replace(run, experiment=found, compiled=compiled), networks.profiled(state, formats), formats


def _as_found(run: TrialRun, found: Experiment, state: SearchState) -> tuple[TrialRun, SearchState]:
    """The run of the network that was trained as a part of a larger one, with its state."""
    assert run.trial.genome is not None
    (trial,) = found.trials
    policy = init_policy(found.plan.space, "fixed", trial.genome)
    state = found_network.cut_out(run.experiment, state, run.trial.genome, state)
    state = state._replace(policies=jax.tree.map(lambda leaf: leaf[None], policy))
    compiled = dataclasses.replace(run.compiled, networks=finished.Networks(found, run.dataset))
    return dataclasses.replace(run, experiment=found, trial=trial, compiled=compiled), state


def _chosen_genomes(run: TrialRun, state: SearchState) -> list[jax.Array]:
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


def _summary(run: TrialRun, experiment: Experiment, genome: np.ndarray, seconds: float) -> dict[str, Any]:
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
        "reading": getattr(run.dataset, "reading", None),
        **environment_summary(),
    }
