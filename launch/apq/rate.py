"""The rate command: what the predictors say of networks found elsewhere, by FLIQS or by hand, and what they cost."""

import pathlib
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from rich import box
from rich.table import Table

from apq_jax import block_network
from apq_jax.network_space import NetworkSpace
from hwcost import pricing
from hwcost.costs import find_cost
from hwcost.genome_file import Genome, GenomeFileError, read_genome
from launch.apq import fit_predictor
from launch.apq.pipeline import REPORTED_COSTS, Pipeline
from launch.training.given_genome import check_settings
from launch.training.settings import ConfigError


def run(pipeline: Pipeline, files: Sequence[str]) -> None:
    """Prints what `rated` tells of genome files.

    Raises:
      ConfigError, GenomeFileError: see `rated`.
    """
    rows = rated(pipeline, files)
    costs = list(rows[0]["costs"])
    units = (f"{name} ({find_cost(name).unit})" for name in costs)
    table = Table("genome", "predicted", "in float", *units, box=box.SIMPLE_HEAD)
    for row in rows:
        accuracies = [f"{row['predicted'][kind]:.2%}" for kind in ("quantized", "float")]
        table.add_row(row["genome"], *accuracies, *(f"{row['costs'][name]:,.4g}" for name in costs))
    pipeline.console.print(table)


def rated(pipeline: Pipeline, files: Sequence[str]) -> list[dict[str, Any]]:
    """Predicted accuracies and costs of the networks of genome files.

    Raises:
      ConfigError: no file is given, or the predictors are not fitted, or are of another config.
      GenomeFileError: a file cannot be read, or is of a network that is not in the space.
    """
    if not files:
        raise ConfigError("no genome files: give --genome")
    space = pipeline.space
    predictors = {kind: fit_predictor.read_predictor(pipeline, kind) for kind in ("quantized", "float")}
    pipeline.claim()
    fit_predictor.check_records(pipeline)
    genomes = np.stack([_genome(space, file) for file in files])
    predicted = {
        kind: np.asarray(fit_predictor.predict_accuracies(space, fitted, jnp.asarray(genomes)))
        for kind, fitted in predictors.items()
    }
    costs = dict.fromkeys([*pipeline.tables, *REPORTED_COSTS])
    tables = {name: pipeline.tables.get(name) or space.cost_table(find_cost(name)) for name in costs}
    return [
        {
            "genome": file,
            "predicted": {kind: float(values[number]) for kind, values in predicted.items()},
            "costs": {name: pricing.price_exactly(table, genomes[number]) for name, table in tables.items()},
        }
        for number, file in enumerate(files)
    ]


def _genome(space: NetworkSpace, file: str) -> np.ndarray:
    """The genome of a file, int32[D]; its network has to be as large as that of the space."""
    named = read_genome(pathlib.Path(file))
    try:
        named = block_network.of_today(named)
        genome = space.encode(named)
        ours = space.named(genome)
        check_settings(named, ours.architecture)
        _check_layers(named, ours)
    except ValueError as error:
        raise GenomeFileError(f"--genome={file}: {error}") from error
    return genome


def _check_layers(theirs: Genome, ours: Genome) -> None:
    for path, layer in theirs.layers.items():
        here = ours.layers.get(path)
        if here is None or layer.format != here.format:
            raise GenomeFileError(f"its choices and its layers differ: {path} is {layer.format}, by choices {here}")
        if None not in (layer.macs, here.macs) and layer.macs != here.macs:
            raise GenomeFileError(f"it is of layers of other sizes: {path} has {layer.macs} MACs, and {here.macs} here")
