"""The last step of APQ: the networks found are cut out, quantised, fine-tuned and evaluated."""

import dataclasses
import hashlib
import json
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from apq_jax import subnet_accuracy, supernet
from apq_jax.shrinking import ShrinkingState
from fliqs_jax.models import pretrained
from hwcost import carbon
from hwcost.format_plan import USUAL_GRANULARITY
from hwcost.genome_file import Genome, LayerChoice, write_genome
from launch.apq import evolve, train_supernet
from launch.apq.pipeline import KIND, PREDICTOR, SEARCH, SUPERNET, Pipeline
from launch.config_files import load_config
from launch.training import runs
from launch.training.budgets import ABSOLUTE
from launch.training.experiment import Experiment, prepare_experiment
from launch.training.run_directory import GENOME, INPUTS, SUMMARY, check_inputs, read_inputs, read_json, write_json
from launch.training.settings import ConfigError
from launch.training.teaching import read_teacher

WEIGHTS = "initial.safetensors"  # of a network as cut out, before fine-tuning

Network = dict[str, Any]
"""A network found, as the search step writes it."""


def run(pipeline: Pipeline) -> None:
    """Cuts out, quantises, fine-tunes and evaluates each network found, and writes the summary.

    Raises:
      ConfigError: networks were found or cut out with another predictor or once-for-all network than those there.
    """
    search = pipeline.read(SEARCH)
    evolve.check_predictor(pipeline)
    supernet_summary = pipeline.read(f"{SUPERNET}/{SUMMARY}")
    inputs = {"once-for-all network": supernet_summary["state_sha256"]}
    if pipeline.done(SUMMARY, inputs, search=search):
        return
    _train(pipeline, {network_name(network): network for network in search["found"]}, inputs)
    rows = []
    for network in search["found"]:
        name = network_name(network)
        summary = read_json(_place(pipeline, name) / "run" / SUMMARY)
        rows.append(
            network | {"name": name, **{key: summary[key] for key in ("accuracy", "validation_accuracy", "seconds")}}
        )
    seconds = supernet_summary["seconds"]
    rates = carbon.Rates(**pipeline.config.finish.footprint)
    pipeline.write(
        SUMMARY,
        {
            "kind": KIND,
            "search": search,
            "inputs": {**(read_inputs(pipeline.workdir) or {}), **inputs},
            "networks": rows,
            "supernet": supernet_summary,
            "predictor": pipeline.read(f"{PREDICTOR}/{SUMMARY}"),
            "footprint": {
                "design": carbon.footprint(seconds, rates)._asdict(),
                "search": carbon.footprint(search["seconds_with_compilation"], rates)._asdict(),
            },
            "config": json.loads(pipeline.config.to_json_best_effort()),
        },
    )


def _place(pipeline: Pipeline, name: str) -> pathlib.Path:
    """The directory of a network found."""
    return pipeline.workdir / "found" / name


def _train(pipeline: Pipeline, networks: Mapping[str, Network], inputs: dict[str, str]) -> None:
    """Fine-tunes and evaluates networks, by name, in runs of their own: in one compiled step, or one after the other.

    Raises:
      ConfigError: one was cut out of another once-for-all network.
    """
    together, state = pipeline.config.finish.together, None
    experiments = {}
    for name, network in networks.items():
        directory = _place(pipeline, name)
        if (stored := read_inputs(directory)) is not None:
            check_inputs(directory, stored, inputs)
        elif (directory / "run").exists():
            pipeline.note(f"{directory} tells no digest of its once-for-all network, as earlier versions")
        else:
            directory.mkdir(parents=True, exist_ok=True)
            write_genome(directory / GENOME, pipeline.space.named(_genome(pipeline, network)))
            if not together:
                state = state or train_supernet.read_supernet(pipeline)
                _cut_out(pipeline, state, network, directory)
            write_json(directory / INPUTS, inputs)
        experiments[name] = prepare_experiment(
            _finishing_config(pipeline, network["budget"], directory), pipeline.source
        )
    if not together:
        for name, experiment in experiments.items():
            runs.run(experiment, _place(pipeline, name) / "run", pipeline.console)
    elif not all((_place(pipeline, name) / "run" / SUMMARY).exists() for name in networks):
        state = train_supernet.read_supernet(pipeline)
        runs.run(_joined(pipeline, networks, experiments, state), pipeline.workdir / "found", pipeline.console)


def _joined(
    pipeline: Pipeline,
    networks: Mapping[str, Network],
    experiments: Mapping[str, Experiment],
    state: ShrinkingState,
) -> Experiment:
    """The experiment of the largest network, in whose one compiled step all others are trained, each by its genome."""
    largest = _of_largest(pipeline)
    trials = []
    for name, experiment in experiments.items():
        (own,) = experiment.trials
        genome = largest.plan.encode(_in_largest(pipeline, networks[name]))
        trials.append(dataclasses.replace(own, directory=f"{name}/run", genome=genome, ends_as=experiment))
    weights = jax.device_get((state.params, state.batch_stats))
    return dataclasses.replace(largest, trials=tuple(trials), weights=weights)


def _of_largest(pipeline: Pipeline) -> Experiment:
    """The experiment that would fine-tune the largest network; of all that it contains, if they are trained together.

    Raises:
      ValueError: a setting of `finish` cannot be used.
    """
    space = pipeline.space
    budget = pipeline.budgets[0] if pipeline.budgets else {"bit_operations": 1.0}
    with tempfile.TemporaryDirectory() as folder:
        directory = pathlib.Path(folder)
        write_genome(directory / GENOME, space.named(space.largest))
        config = _finishing_config(pipeline, budget, directory)
        config.init_from = ""  # which needs the once-for-all network
        config.formats = _all_formats(pipeline)
        family = space.family if pipeline.config.finish.together else None
        return prepare_experiment(config, pipeline.source, family=family)


def check(pipeline: Pipeline) -> None:
    """Checks, before anything is trained, the run that fine-tunes: its settings, on the largest network.

    Raises:
      ValueError: a setting of `finish` cannot be used.
    """
    try:
        experiment = _of_largest(pipeline)
        if experiment.config.distillation.teacher:
            read_teacher(experiment, pipeline.open_data(), pipeline.console)
    except ValueError as error:
        raise ConfigError(f"finish: {error}") from error


def network_name(network: Network) -> str:
    """The name of a network found: its budgets and a digest of its choices, since a Pareto front holds several."""
    budgets = (f"{cost}-{limit:g}" for cost, limit in network["budget"].items())
    digest = hashlib.sha256(json.dumps(network["choices"]).encode()).hexdigest()
    return "-".join([*budgets, digest[:8]])


def _cut_out(pipeline: Pipeline, state: ShrinkingState, network: Network, directory: pathlib.Path) -> None:
    """Writes the weights of a network found, as they are before fine-tuning."""
    _, variables = supernet.cut_out(pipeline.space, state.params, state.batch_stats, _genome(pipeline, network))
    pretrained.save(directory / WEIGHTS, jax.device_get(variables))


def _genome(pipeline: Pipeline, network: Network) -> np.ndarray:
    """The genome of a network found, int32[D]."""
    return pipeline.space.search_space.encode(network["choices"])


def _in_largest(pipeline: Pipeline, network: Network) -> Genome:
    """The genome of a network found with a format for each layer of the largest one, those that it skips too."""
    space, genome = pipeline.space, _genome(pipeline, network)
    choice = space.format_choice(jnp.asarray(genome)).tolist()
    # Granularities are decided by the rules of the fine-tuning run.
    layers = {
        layer.path: LayerChoice(space.formats[index].name, granularity="")
        for layer, index in zip(space.layers, choice, strict=True)
    }
    return dataclasses.replace(space.named(genome), layers=layers)


def _all_formats(pipeline: Pipeline) -> str:
    """The formats of the space, as a setting."""
    return ",".join(member.name for member in pipeline.space.formats)


def _finishing_config(pipeline: Pipeline, budget: Mapping[str, float], directory: pathlib.Path) -> ConfigDict:
    """The config of a FLIQS run that fine-tunes the genome in a directory, and reports on its budgets."""
    config, finish = load_config("common"), pipeline.config.finish.to_dict()
    together = finish.pop("together")
    config.update(finish)
    clipping = subnet_accuracy.QUANTIZERS[pipeline.config.quantizer]
    config.clip.source = clipping.source
    if clipping.granularity != USUAL_GRANULARITY:
        config.rules = (f".*: {clipping.granularity}",)
    (cost, limit), *further = budget.items()
    config.update(
        {
            "seed": pipeline.config.seed,
            "data": pipeline.config.data.to_dict(),
            "init_from": "" if together else str(directory / WEIGHTS),
            # The genome names its own, and the model; networks that are trained together choose from the same formats.
            "formats": _all_formats(pipeline) if together else "",
            "policy": "fixed",
            "genome": str(directory / GENOME),
            "cost": cost,
            "target": limit,
            "target_unit": ABSOLUTE,
            "budgets": tuple({"cost": cost, "target": limit, "target_unit": ABSOLUTE} for cost, limit in further),
        }
    )
    return config
