"""FLIQS against formats assigned before training, at equal cost: CIFAR-10, ResNet-8, 1.15 × int4.

    python -m benchmarks.assignments --data_dir=DIR [--seeds=2] [--workdir=runs/cifar10]

Formats are assigned at random, or greedily or by knapsack from the sensitivities of the trained bf16 network
(`launch.sensitivity`). Each such network is trained from scratch for as many epochs as the search. The search and the
bf16 network are those of `benchmarks.cifar10` in the same work directory; they are trained first if missing. Writes
results/assignments.json beside this file.
"""

import json
import pathlib
import statistics
import sys
from typing import Any

import numpy as np
from absl import logging
from ml_collections import ConfigDict
from rich.console import Console

from benchmarks import cifar10
from hwcost import pricing
from hwcost.genome_file import write_genome
from launch import sensitivity
from launch.reports import recorded_runs
from launch.training import runs
from launch.training.experiment import Experiment, prepare_experiment
from launch.training.interruption import stop_on_signals

RESULTS = pathlib.Path(__file__).parent / "results" / "assignments.json"
RANDOM_GENOMES = 2  # per seed
NAMES = {"random": "random assignment", "greedy": "greedy by sensitivity", "knapsack": "knapsack by sensitivity"}


def random_genomes(prepared: Experiment, seed: int) -> list[np.ndarray]:
    """Random genomes, int[D], that cost 95 to 100 % of the target."""
    rng, search = np.random.default_rng(seed), prepared.search
    counts = prepared.plan.space.option_counts
    genomes: list[np.ndarray] = []
    while len(genomes) < RANDOM_GENOMES:
        # Format frequencies are random too, since uniformly sampled formats almost always cost too much.
        weights = rng.dirichlet(np.ones(counts.max()))
        genome = rng.choice(counts.max(), size=len(counts), p=weights)
        cost = pricing.price_exactly(search.budgets[0].table, genome) / search.budgets[0].target
        if 0.95 <= cost <= 1:
            genomes.append(genome)
    return genomes


def train(config: ConfigDict, directory: pathlib.Path, console: Console, stop: Any) -> dict[str, Any]:
    """Summary of a run, which is trained first if it is missing."""
    runs.run_all(prepare_experiment(config), directory, console, stop)
    return recorded_runs.read_runs([directory])[0].summary


def run_seed(seed: int, data_dir: str, workdir: pathlib.Path, console: Console) -> dict[str, list[dict[str, Any]]]:
    """Trains all networks of a seed; returns their summaries by method."""
    variants = cifar10.variants()
    for config in variants.values():
        config.seed, config.data.data_dir = seed, data_dir
    by_method: dict[str, list[dict[str, Any]]] = {}
    with stop_on_signals() as stop:
        by_method["FLIQS"] = [train(variants["int_s"], workdir / "int_s", console, stop)]
        train(variants["int"], workdir / "int", console, stop)
        sensitivity.main([str(workdir / "int" / "uniform-bf16")])
        prepared = prepare_experiment(variants["int_s"])
        genomes = {
            method: [workdir / "int" / "uniform-bf16" / f"genome-{method}.json"] for method in sensitivity.METHODS
        }
        genomes["random"] = []
        for number, genome in enumerate(random_genomes(prepared, seed)):
            genomes["random"].append(workdir / f"random-{number}.json")
            write_genome(genomes["random"][-1], prepared.plan.named(genome))
        for method, files in genomes.items():
            for number, file in enumerate(files):
                config = variants["int_s"].copy_and_resolve_references()
                config.update({"policy": "fixed", "genome": str(file)})
                summary = train(config, workdir / f"assigned-{method}-{number}", console, stop)
                by_method.setdefault(NAMES[method], []).append(summary)
    return by_method


def markdown(document: dict[str, Any]) -> str:
    """Table of docs/results.md in Markdown."""
    lines = ["| formats | test accuracy (%), each run | mean | cost / int4 |", "|---|---|---|---|"]
    for row in document["methods"]:
        accuracies = ", ".join(f"{100 * a:.2f}" for a in row["accuracy"])
        costs = row["cost_over_int4"]
        span = sorted({f"{min(costs):.2f}", f"{max(costs):.2f}"})
        mean = 100 * statistics.mean(row["accuracy"])
        lines.append(f"| {row['method']} | {accuracies} | {mean:.2f} | {' – '.join(span)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Trains missing networks, stores and prints the table."""
    arguments = cifar10.parse_arguments(str(__doc__))
    logging.set_verbosity(logging.WARNING)
    console = Console()
    by_method: dict[str, list[dict[str, Any]]] = {}
    for seed in range(arguments.seeds):
        seed_summaries = run_seed(seed, arguments.data_dir, arguments.workdir / f"seed{seed}", console)
        for method, summaries in seed_summaries.items():
            by_method.setdefault(method, []).extend(summaries)
    document = {
        "command": f"python -m benchmarks.assignments --data_dir=DIR --seeds={arguments.seeds}",
        "methods": [
            {
                "method": method,
                "accuracy": [s["accuracy"] for s in summaries],
                "cost_over_int4": [s["relative_cost"] * s["config"]["target"] for s in summaries],
                "formats": [[layer["format"] for layer in s["layers"]] for s in summaries],
            }
            for method, summaries in by_method.items()
        ],
    }
    RESULTS.write_text(json.dumps(document, indent=1) + "\n")
    console.print(markdown(document), soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
