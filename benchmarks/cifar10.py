"""CIFAR-10, ResNet-8: searches over three format spaces against uniform networks, and two ablations.

    python -m benchmarks.cifar10 --data_dir=DIR [--seeds=2] [--workdir=runs/cifar10]

Trains ten networks per seed as `launch.fliqs` does, and writes results/cifar10.json beside this file. Finished runs in
the work directory are reused.
"""

import argparse
import json
import pathlib
import statistics
import sys
from typing import Any

from absl import logging
from ml_collections import ConfigDict
from rich.console import Console

from benchmarks import pictures
from configs import common, fliqs_cifar10_resnet8
from launch.reports import figures, fliqs_page, recorded_runs
from launch.training import runs
from launch.training.experiment import prepare_experiment
from launch.training.interruption import stop_on_signals

RESULTS = pathlib.Path(__file__).parent / "results" / "cifar10.json"
PAPER_CONTROLLER = "int_s-paper-controller"
SIGNED_INPUTS = "int4-signed-inputs"
ABLATIONS = {PAPER_CONTROLLER: "FLIQS int_s (paper's controller)", SIGNED_INPUTS: "uniform int4, signed"}


def variants() -> dict[str, ConfigDict]:
    """Experiments by directory name; uniform networks are separate ones, since search settings do not affect them."""

    def variant(**changes: Any) -> ConfigDict:
        config = fliqs_cifar10_resnet8.get_config()
        config.update({"baselines": ()} | changes)
        return config

    paper = common.get_config()
    return {
        "int_s": variant(),
        "int": variant(policy="fixed", genome="int4", baselines=("int8", "bf16")),
        "int_l": variant(formats="int_l"),
        "fp_l": variant(formats="fp_l"),
        "fp": variant(formats="fp_l", policy="fixed", genome="e2m1", baselines=("e4m3",)),
        SIGNED_INPUTS: variant(policy="fixed", genome="int4", unsigned_inputs=False),
        PAPER_CONTROLLER: variant(policy=paper.policy, controller=paper.controller),
    }


def read(workdir: pathlib.Path, seeds: int) -> dict[str, list[dict[str, Any]]]:
    """Summaries of each network, one per seed, by name of the network."""
    networks: dict[str, list[dict[str, Any]]] = {}
    for seed in range(seeds):
        for variant in variants():
            for run in recorded_runs.read_runs([workdir / f"seed{seed}" / variant]):
                name = ABLATIONS.get(variant, run.summary["name"])
                networks.setdefault(name, []).append(run.summary)
    return networks


def tabulate(networks: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """One row per network: accuracy and relative cost of each seed, and the fraction of the gap that it recovers.

    The gap is the difference of the mean accuracies of uniform bf16 and the uniform 4-bit network, which is int4 for
    integer spaces and e2m1 for float spaces.
    """
    mean = {name: statistics.mean(s["accuracy"] for s in summaries) for name, summaries in networks.items()}
    high = mean["uniform bf16"]

    def recovered(name: str) -> float:
        floats = networks[name][0]["config"]["formats"].startswith("fp")
        low = mean["uniform e2m1" if floats else "uniform int4"]
        return (mean[name] - low) / (high - low)

    return [
        {
            "network": name,
            "accuracy": [s["accuracy"] for s in summaries],
            "accuracy_before_recalibration": [s["accuracy_before_recalibration"] for s in summaries],
            "cost_over_int4": [s["relative_cost"] * s["config"]["target"] for s in summaries],
            "gap_recovered": recovered(name),
            "formats": [[layer["format"] for layer in s["layers"]] for s in summaries],
            "steps_per_second": [s["steps_per_second"] for s in summaries],
            "search_step_compilations": [s["search_step_compilations"] for s in summaries],
        }
        for name, summaries in networks.items()
    ]


def markdown(rows: list[dict[str, Any]]) -> str:
    """Table of docs/results.md in Markdown."""
    lines = [
        "| network | test accuracy (%), each seed | cost / int4 | recovered of the gap to bf16 |",
        "|---|---|---|---|",
    ]
    for row in rows:
        accuracies = ", ".join(f"{100 * a:.2f}" for a in row["accuracy"])
        costs = sorted({f"{c:.2f}" for c in row["cost_over_int4"]})
        lines.append(f"| {row['network']} | {accuracies} | {' – '.join(costs)} | {100 * row['gap_recovered']:.0f} % |")
    return "\n".join(lines) + "\n"


def draw(networks: dict[str, list[dict[str, Any]]]) -> None:
    """Draws the pictures of docs/results.md: mean accuracy against cost, and formats that the first seed found."""
    means = [
        summaries[0]
        | {key: statistics.mean(s[key] for s in summaries) for key in ("accuracy", "cost")}
        | {"name": name.removeprefix("FLIQS ")}
        for name, summaries in networks.items()
    ]
    pictures.write("cifar10_pareto.svg", figures.pareto(means))
    chosen = [summaries[0] for name, summaries in networks.items() if name.startswith("FLIQS") and "paper" not in name]
    pictures.write("cifar10_formats.svg", figures.formats_over_depth(chosen))


def parse_arguments(description: str) -> argparse.Namespace:
    """Parses the command line of benchmarks on CIFAR-10."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True, help="where tfds has cifar10 prepared")
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/cifar10"))
    parser.add_argument("--seeds", type=int, default=2)
    return parser.parse_args()


def main() -> None:
    """Trains missing networks, stores and prints the table, and draws the pictures."""
    arguments = parse_arguments(str(__doc__))
    logging.set_verbosity(logging.WARNING)
    console = Console()
    with stop_on_signals() as stop:
        for seed in range(arguments.seeds):
            for name, config in variants().items():
                config.seed, config.data.data_dir = seed, arguments.data_dir
                runs.run_all(prepare_experiment(config), arguments.workdir / f"seed{seed}" / name, console, stop)
    networks = read(arguments.workdir, arguments.seeds)
    rows = tabulate(networks)
    draw(networks)
    epochs = fliqs_cifar10_resnet8.get_config().epochs
    command = f"python -m benchmarks.cifar10 --data_dir=DIR --seeds={arguments.seeds}"
    RESULTS.write_text(json.dumps({"command": command, "epochs": epochs, "networks": rows}, indent=1) + "\n")
    console.print(markdown(rows), soft_wrap=True)
    page = arguments.workdir / "report.html"
    fliqs_page.write([arguments.workdir / "seed0" / name for name in variants()], page)
    console.print(f"wrote {RESULTS} and {page}")


if __name__ == "__main__":
    sys.exit(main())
