"""Post-training quantisation of a run: sensitivity of each layer, and assigned formats, without training.

    python -m launch.sensitivity DIR [--target=1.15] [--examples=1024]

DIR is the directory of a finished run, preferably in a wide format (DIR/uniform-bf16). Each layer is quantised to each
format while the others stay in float, on validation examples. From the signal-to-noise ratio of the logits, formats are
assigned under the cost target, greedily and by knapsack. The command reports the test accuracy of both assignments
after post-training quantisation with recalibrated batch statistics. It writes sensitivity.json, sensitivity.svg and
genome files to DIR; `--config.policy=fixed --config.genome=FILE` trains such a genome.
"""

import argparse
import itertools
import json
import pathlib
import sys
from typing import Any

if not __package__:  # run as a file: import from the folder of launch/ and from the current one
    sys.path[:1] = [str(pathlib.Path(__file__).parents[1]), ""]

import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from fliqs_jax import assignment, layer_sensitivity
from fliqs_jax.layer_sensitivity import Sensitivity
from hwcost import pricing
from hwcost.genome_file import write_genome
from launch import data
from launch.reports import figures
from launch.training import finished, runs
from launch.training.experiment import Experiment

METHODS = {"greedy": assignment.greedy, "knapsack": assignment.knapsack}


def assign(prepared: Experiment, state: Any, dataset: data.Dataset, measured: Sensitivity) -> dict[str, dict[str, Any]]:
    """Genome, cost, and test quality without training of each method of `METHODS`."""
    search = prepared.search
    choices = assignment.options(prepared.plan, search.budgets[0].table, measured.noise_to_signal)
    networks = finished.Networks(prepared, dataset)
    assignments = {}
    for name, method in METHODS.items():
        genome = method(choices, search.budgets[0].target)
        network = networks.recalibrated(networks.frozen(state, jnp.asarray(genome)))
        quality = networks.quality(networks.variables(network), "test")
        cost = pricing.price_exactly(search.budgets[0].table, genome)
        assignments[name] = {
            "genome": genome.tolist(),
            "cost": cost,
            "relative_cost": cost / search.budgets[0].target,
            f"test_{search.quality.name}_without_training": quality,
            "layers": prepared.plan.layer_formats(genome),
        }
    return assignments


def show(document: dict[str, Any], console: Console) -> None:
    """Prints the sensitivities and assignments of the document that `main` stores."""
    table = Table("layer", *(f"{name} (dB)" for name in document["formats"]), *METHODS, box=None)
    for path, decibels in document["signal_to_noise_db"].items():
        chosen = [document["assignments"][method]["layers"][path] for method in METHODS]
        table.add_row(path, *(f"{value:.1f}" for value in decibels), *chosen)
    console.print(table)
    for method, result in document["assignments"].items():
        key = f"test_{document['quality']}_without_training"
        console.print(
            f"{method}: {result[key]:.2%} {document['quality']} on test without training, "
            f"cost / target {result['relative_cost']:.3f}"
        )


def main(argv: list[str] | None = None) -> None:
    """Measures sensitivities, assigns formats, prints and stores both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=pathlib.Path, metavar="DIR")
    parser.add_argument("--target", type=float, help="cost target in the run's own unit, if not the run's own")
    parser.add_argument("--examples", type=int, default=1024, help="validation examples to measure on")
    arguments = parser.parse_args(argv)
    directory, console = arguments.directory, Console()
    try:
        changes = {} if arguments.target is None else {"target": arguments.target}
        prepared = finished.read_experiment(directory, **changes)
        state = finished.read_weights(directory, prepared)
        dataset = runs.open_data(prepared)
        size = prepared.config.valid_batch_size
        batches = dataset.eval_batches("valid", batch_size=size)
        measured_batches = itertools.islice(batches, max(arguments.examples // size, 1))
        measured = layer_sensitivity.measure_over(prepared.search, state, measured_batches)
        assignments = assign(prepared, state, dataset, measured)
    except ValueError as error:
        sys.exit(f"error: {error}")
    paths, name = prepared.search.paths, prepared.search.quality.name
    names = [fmt.name for fmt in prepared.plan.formats]
    # JSON has no infinity: a ratio without noise is stored as 200 dB.
    decibels = np.minimum(measured.signal_to_noise_db, 200.0)
    document = {
        "command": f"python -m launch.sensitivity {directory}",
        "formats": names,
        "quality": name,
        f"validation_{name}": measured.quality,
        "signal_to_noise_db": dict(zip(paths, decibels.round(3).tolist(), strict=True)),
        f"{name}_drop": dict(zip(paths, measured.quality_drop.tolist(), strict=True)),
        "target": prepared.search.budgets[0].target,
        "assignments": assignments,
    }
    try:
        (directory / "sensitivity.json").write_text(json.dumps(document, indent=1) + "\n")
        (directory / "sensitivity.svg").write_text(figures.sensitivities(decibels, paths, names))
        for method, result in assignments.items():
            write_genome(directory / f"genome-{method}.json", prepared.plan.named(result["genome"]))
    except OSError as error:
        sys.exit(f"error: {error}")
    show(document, console if console.is_terminal else Console(width=160))
    console.print(f"wrote {directory}/sensitivity.json, sensitivity.svg, genome-greedy.json, genome-knapsack.json")


if __name__ == "__main__":
    main()
