"""The last step of APQ: the networks found are cut out, quantised, fine-tuned and evaluated."""

import hashlib
import json
import pathlib
import tempfile
from typing import Any

import jax
from ml_collections import ConfigDict

from apq_jax import supernet
from apq_jax.shrinking import ShrinkingState
from fliqs_jax.models import pretrained
from hwcost import carbon
from hwcost.genome_file import write_genome
from launch.apq import evolve, train_supernet
from launch.apq.pipeline import KIND, PREDICTOR, SEARCH, SUPERNET, Pipeline
from launch.config_files import load_config
from launch.training import runs
from launch.training.budgets import ABSOLUTE
from launch.training.experiment import prepare_experiment
from launch.training.run_directory import GENOME, INPUTS, SUMMARY, check_inputs, read_inputs, read_json, write_json
from launch.training.settings import ConfigError
from launch.training.teaching import read_teacher

WEIGHTS = "initial.safetensors"  # of a network as cut out, before fine-tuning


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
    state = None
    rows = []
    for network in search["found"]:
        name = network_name(network)
        directory = pipeline.workdir / "found" / name
        if (stored := read_inputs(directory)) is not None:
            check_inputs(directory, stored, inputs)
        elif (directory / "run").exists():
            pipeline.note(f"{directory} tells no digest of its once-for-all network, as earlier versions")
        else:
            state = state or train_supernet.read_supernet(pipeline)
            _cut_out(pipeline, state, network, directory)
            write_json(directory / INPUTS, inputs)
        prepared = prepare_experiment(_finishing_config(pipeline, network, directory), pipeline.source)
        runs.run(prepared, directory / "run", pipeline.console)
        summary = read_json(directory / "run" / SUMMARY)
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


def check(pipeline: Pipeline) -> None:
    """Checks, before anything is trained, the run that fine-tunes: its settings, on the largest network.

    Raises:
      ValueError: a setting of `finish` cannot be used.
    """
    space = pipeline.space
    network = {
        "budget": pipeline.budgets[0] if pipeline.budgets else {"bit_operations": 1.0},
        "choices": space.search_space.decode(space.largest),
    }
    with tempfile.TemporaryDirectory() as folder:
        directory = pathlib.Path(folder)
        write_genome(directory / GENOME, space.named(space.largest))
        config = _finishing_config(pipeline, network, directory)
        config.init_from = ""  # which needs the once-for-all network
        config.formats = ",".join(member.name for member in space.formats)
        try:
            experiment = prepare_experiment(config, pipeline.source)
            if config.distillation.teacher:
                read_teacher(experiment, pipeline.open_data(), pipeline.console)
        except ValueError as error:
            raise ConfigError(f"finish: {error}") from error


def network_name(network: dict[str, Any]) -> str:
    """The name of a network found: its budgets and a digest of its choices, since a Pareto front holds several."""
    budgets = (f"{cost}-{limit:g}" for cost, limit in network["budget"].items())
    digest = hashlib.sha256(json.dumps(network["choices"]).encode()).hexdigest()
    return "-".join([*budgets, digest[:8]])


def _cut_out(pipeline: Pipeline, state: ShrinkingState, network: dict[str, Any], directory: pathlib.Path) -> None:
    """Writes the genome and the weights of a network found."""
    space = pipeline.space
    directory.mkdir(parents=True, exist_ok=True)
    genome = space.search_space.encode(network["choices"])
    _, variables = supernet.cut_out(space, state.params, state.batch_stats, genome)
    write_genome(directory / GENOME, space.named(genome))
    pretrained.save(directory / WEIGHTS, jax.device_get(variables))


def _finishing_config(pipeline: Pipeline, network: dict[str, Any], directory: pathlib.Path) -> ConfigDict:
    """The config of a FLIQS run that fine-tunes a network found in its formats and reports on all of its budgets."""
    config = load_config("common")
    config.update(pipeline.config.finish.to_dict())
    (cost, limit), *further = network["budget"].items()
    config.update(
        {
            "seed": pipeline.config.seed,
            "data": pipeline.config.data.to_dict(),
            "init_from": str(directory / WEIGHTS),
            "formats": "",  # these and the model are told by the genome
            "policy": "fixed",
            "genome": str(directory / GENOME),
            "cost": cost,
            "target": limit,
            "target_unit": ABSOLUTE,
            "budgets": tuple({"cost": cost, "target": limit, "target_unit": ABSOLUTE} for cost, limit in further),
        }
    )
    return config
