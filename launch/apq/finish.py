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
from hwcost.format_plan import format_decision
from launch.apq import train_supernet
from launch.apq.pipeline import PREDICTOR, SEARCH, SUMMARY, SUPERNET, Pipeline
from launch.training import runs
from launch.training.experiment import prepare_experiment


def finish(pipeline: Pipeline) -> None:
    """Cuts the found networks out, quantises, fine-tunes and evaluates each, and writes the summary."""
    searched = pipeline.read(SEARCH)
    if pipeline.done(SUMMARY, search=searched):
        return
    state = None
    rows = []
    for found in searched["found"]:
        name = name_of(found)
        directory = pipeline.workdir / "found" / name
        if not (directory / "initial.safetensors").exists():
            state = state or train_supernet.read(pipeline)
            _cut_out(pipeline, state, found, directory)
        prepared = prepare_experiment(_finishing_config(pipeline, found, directory), pipeline.source)
        runs.run(prepared, directory / "run", pipeline.console)
        summary = json.loads((directory / "run" / runs.SUMMARY).read_text())
        rows.append(found | {"name": name, **{key: summary[key] for key in _TOLD}})
    seconds = pipeline.read(f"{SUPERNET}/{SUMMARY}")["seconds"]
    rates = carbon.Rates(**pipeline.config.finish.footprint)
    pipeline.write(
        SUMMARY,
        {
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


def name_of(found: dict[str, Any]) -> str:
    """What a found network is called: by its budgets, and by what it is, since a front holds several."""
    budgets = (f"{cost}-{limit:g}" for cost, limit in found["budget"].items())
    digest = hashlib.sha256(json.dumps(found["choices"]).encode()).hexdigest()
    return "-".join([*budgets, digest[:8]])


_TOLD = ("accuracy", "validation_accuracy", "seconds")


def _cut_out(pipeline: Pipeline, state: ShrinkingState, found: dict[str, Any], directory: pathlib.Path) -> None:
    """Writes genome and weights of a found network, and the formats of its layers."""
    space = pipeline.space
    directory.mkdir(parents=True, exist_ok=True)
    genome = space.search_space.encode(found["choices"])
    space.search_space.save_genome(directory / "genome.json", genome)
    _, variables = supernet.cut_out(space, state.params, state.batch_stats, genome)
    of_genomes = subnet_accuracy.formats_of_genomes(space)
    names = [of_genomes.members[index].name for index in np.asarray(of_genomes.choice(jnp.asarray(genome)))]
    kept = variables["params"]
    formats = {
        format_decision(path): name
        for path, name in zip(of_genomes.paths, names, strict=True)
        if path.split("/")[0] in kept
    }
    (directory / "formats.json").write_text(json.dumps({"choices": formats}, indent=1) + "\n")
    pretrained.save(directory / "initial.safetensors", jax.device_get(variables))


def _finishing_config(pipeline: Pipeline, found: dict[str, Any], directory: pathlib.Path) -> ConfigDict:
    """A FLIQS experiment that trains the found network under its formats."""
    config = ConfigDict(pipeline.config.finish.to_dict())
    cost, limit = next(iter(found["budget"].items()))
    members = subnet_accuracy.formats_of_genomes(pipeline.space).members
    config.update(
        {
            "seed": pipeline.config.seed,
            "data": pipeline.config.data.to_dict(),
            "init_from": str(directory / "initial.safetensors"),
            "formats": ",".join(member.name for member in members),
            "policy": "fixed",
            "genome": str(directory / "formats.json"),
            "cost": cost,
            "target": limit,
            "target_unit": "absolute",
        }
    )
    config.model = ConfigDict(
        {
            "name": "apq_jax.block_network:from_genome",
            "space": pipeline.config.space,
            "image": pipeline.config.image_size,
            "genome": str(directory / "genome.json"),
        }
    )
    return config
