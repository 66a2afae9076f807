"""The last step of APQ: found networks are cut out, quantised, fine-tuned and evaluated."""

import hashlib
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from apq_jax import subnet_accuracy, supernet
from apq_jax.shrinking import ShrinkingState
from fliqs_jax.models import pretrained
from hwcost import carbon
from hwcost.genome_file import Genome, LayerChoice, write_genome
from launch.apq import train_supernet
from launch.apq.pipeline import PREDICTOR, SEARCH, SUPERNET, Pipeline
from launch.config_files import load_config
from launch.training import runs
from launch.training.budgets import ABSOLUTE
from launch.training.experiment import prepare_experiment
from launch.training.run_directory import GENOME, SUMMARY

WEIGHTS = "initial.safetensors"  # of a found network, as it was cut out


def run(pipeline: Pipeline) -> None:
    """Cuts the found networks out, quantises, fine-tunes and evaluates each, and writes the summary."""
    searched = pipeline.read(SEARCH)
    if pipeline.done(SUMMARY, search=searched):
        return
    state = None
    rows = []
    for found in searched["found"]:
        name = network_name(found)
        directory = pipeline.workdir / "found" / name
        if not (directory / WEIGHTS).exists():
            state = state or train_supernet.read_supernet(pipeline)
            _cut_out(pipeline, state, found, directory)
        prepared = prepare_experiment(_finishing_config(pipeline, found, directory), pipeline.source)
        runs.run(prepared, directory / "run", pipeline.console)
        summary = json.loads((directory / "run" / SUMMARY).read_text())
        rows.append(
            found | {"name": name, **{key: summary[key] for key in ("accuracy", "validation_accuracy", "seconds")}}
        )
    seconds = pipeline.read(f"{SUPERNET}/{SUMMARY}")["seconds"]
    rates = carbon.Rates(**pipeline.config.finish.footprint)
    pipeline.write(
        SUMMARY,
        {
            "kind": "apq",
            "search": searched,
            "networks": rows,
            "supernet": pipeline.read(f"{SUPERNET}/{SUMMARY}"),
            "predictor": pipeline.read(f"{PREDICTOR}/{SUMMARY}"),
            "footprint": {
                "design": carbon.footprint(seconds, rates)._asdict(),
                "search": carbon.footprint(searched["seconds_with_compilation"], rates)._asdict(),
            },
            "config": json.loads(pipeline.config.to_json_best_effort()),
        },
    )


def network_name(found: dict[str, Any]) -> str:
    """What a found network is called: by its budgets, and by what it is, since a front holds several."""
    budgets = (f"{cost}-{limit:g}" for cost, limit in found["budget"].items())
    digest = hashlib.sha256(json.dumps(found["choices"]).encode()).hexdigest()
    return "-".join([*budgets, digest[:8]])


def _cut_out(pipeline: Pipeline, state: ShrinkingState, found: dict[str, Any], directory: pathlib.Path) -> None:
    """Writes genome and weights of a found network."""
    space = pipeline.space
    directory.mkdir(parents=True, exist_ok=True)
    genome = space.search_space.encode(found["choices"])
    _, variables = supernet.cut_out(space, state.params, state.batch_stats, genome)
    layer_choices = subnet_accuracy.genome_formats(space)
    names = [layer_choices.members[index].name for index in np.asarray(layer_choices.choice(jnp.asarray(genome)))]
    kept = variables["params"]
    layers = {
        path: LayerChoice(name, granularity="")  # which the finishing run's rules decide
        for path, name in zip(layer_choices.paths, names, strict=True)
        if path.split("/")[0] in kept
    }
    architecture = {"space": pipeline.config.space, "image_size": pipeline.config.image_size}
    write_genome(directory / GENOME, Genome(found["choices"], layers, architecture))
    pretrained.save(directory / WEIGHTS, jax.device_get(variables))


def _finishing_config(pipeline: Pipeline, found: dict[str, Any], directory: pathlib.Path) -> ConfigDict:
    """A FLIQS experiment that trains the found network under its formats and all of its budgets."""
    config = load_config("common")
    config.update(pipeline.config.finish.to_dict())
    (cost, limit), *further = found["budget"].items()
    config.update(
        {
            "seed": pipeline.config.seed,
            "data": pipeline.config.data.to_dict(),
            "init_from": str(directory / WEIGHTS),
            "formats": "",  # those of the genome
            "policy": "fixed",
            "genome": str(directory / GENOME),
            "cost": cost,
            "target": limit,
            "target_unit": ABSOLUTE,
            "budgets": tuple({"cost": cost, "target": limit, "target_unit": ABSOLUTE} for cost, limit in further),
        }
    )
    config.model = ConfigDict({"name": "apq_jax.block_network:from_genome", "genome": str(directory / GENOME)})
    return config
