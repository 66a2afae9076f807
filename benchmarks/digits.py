"""The default search over several seeds: `make search`, and the uniform networks that frame it.

    python -m benchmarks.digits [--seeds=3] [--workdir=runs/digits_seeds] [--scales=float32]

A minute and a half a seed on two quiet cores; it goes on where it was interrupted. Writes results/digits.json; with
scales that are powers of two, of the search alone, results/digits_power_of_two.json.
"""

import argparse
import json
import pathlib
import statistics
from typing import Any

from absl import logging
from rich.console import Console

from aqt_like.granularity import SCALE_RULES
from configs import fliqs_digits
from launch.reports import recorded_runs
from launch.training import runs
from launch.training.experiment import prepare_experiment
from launch.training.interruption import stop_on_signals

USUAL = "float32"  # of the rules for scales
RESULTS = pathlib.Path(__file__).parent / "results" / "digits.json"


def tabulate(summaries: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """One row per network: accuracy on test, and cost over that of int2, of each seed."""
    return [
        {
            "network": name,
            "accuracy": [summary["accuracy"] for summary in each],
            # Targets are in int2, whatever is trained.
            "cost_over_int2": [summary["config"]["target"] * summary["relative_cost"] for summary in each],
            "formats": [[layer["format"] for layer in summary["layers"]] for summary in each],
            "seconds": [summary["seconds"] for summary in each],
        }
        for name, each in summaries.items()
    ]


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table of the README."""
    lines = ["| network | test accuracy (%), each seed | mean | cost / int2 |", "|---|---|---|---|"]
    for row in rows:
        accuracies = ", ".join(f"{100 * accuracy:.2f}" for accuracy in row["accuracy"])
        mean = 100 * statistics.mean(row["accuracy"])
        lines.append(f"| {row['network']} | {accuracies} | {mean:.2f} | {statistics.mean(row['cost_over_int2']):.2f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Trains what is missing and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/digits_seeds"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--scales", choices=tuple(SCALE_RULES), default=USUAL)
    arguments = parser.parse_args()
    logging.set_verbosity(logging.WARNING)
    console = Console()
    summaries: dict[str, list[dict[str, Any]]] = {}
    with stop_on_signals() as stop:
        for seed in range(arguments.seeds):
            config = fliqs_digits.get_config()
            config.seed, config.scales = seed, arguments.scales
            directory = arguments.workdir / f"seed{seed}"
            if arguments.scales != USUAL:
                directory, config.baselines = arguments.workdir / arguments.scales / f"seed{seed}", ()
            runs.run_all(prepare_experiment(config), directory, console, stop)
            for run in recorded_runs.read_runs([directory]):
                summaries.setdefault(run.summary["name"], []).append(run.summary)
    rows = tabulate(summaries)
    command, results = f"python -m benchmarks.digits --seeds={arguments.seeds}", RESULTS
    if arguments.scales != USUAL:
        command += f" --scales={arguments.scales}"
        results = RESULTS.with_stem(f"digits_{arguments.scales}")
    results.write_text(json.dumps({"command": command, "networks": rows}, indent=1) + "\n")
    console.print(markdown(rows), soft_wrap=True)


if __name__ == "__main__":
    main()
