"""Accuracy of networks whose activations are stored in bfloat16 between layers, against float32.

    python -m benchmarks.activation_types --data_dir=DIR [--seeds=3] [--workdir=runs/activation_types] [--only=PATTERN]

`configs/fliqs_cifar10_resnet8.py` for four epochs, with the search and all else the same. Finished networks in the work
directory are not trained again. Half an hour of one core; writes results/activation_types.json.
"""

import json
import pathlib
import sys
from typing import Any, NamedTuple

from rich.console import Console

from aqt_like.stored_activations import TYPES
from benchmarks import trained_networks
from configs import fliqs_cifar10_resnet8
from launch.training import runs
from launch.training.experiment import prepare_experiment
from launch.training.interruption import StopRequested
from launch.training.run_directory import SUMMARY

RESULTS = pathlib.Path(__file__).parent / "results" / "activation_types.json"
EPOCHS = 4.0


class Network(NamedTuple):
    """One network to train, called after the type of its activations."""

    name: str

    @property
    def directory(self) -> str:
        """Its directory below the work directory; seeds are below that."""
        return self.name


def train(network: Network, seed: int, workdir: pathlib.Path, data: dict[str, Any], stop: StopRequested) -> None:
    """Trains a network with a seed unless it is finished; `data` are settings of where the data are."""
    directory = workdir / network.directory / f"seed{seed}"
    if (directory / SUMMARY).exists():
        return
    config = fliqs_cifar10_resnet8.get_config()
    config.update_from_flattened_dict(data)
    config.seed, config.epochs, config.baselines, config.activations = seed, EPOCHS, (), network.name
    runs.run_all(prepare_experiment(config), directory, Console(), stop)


def read(workdir: pathlib.Path, seeds: int) -> list[dict[str, Any]]:
    """A row per type of which there is a finished network."""
    rows = []
    for network in map(Network, TYPES):
        paths = [workdir / network.directory / f"seed{seed}" / SUMMARY for seed in range(seeds)]
        if summaries := [json.loads(path.read_text()) for path in paths if path.exists()]:
            costs = [summary["relative_cost"] for summary in summaries]
            rows.append({"network": network.name, **trained_networks.measured(summaries), "cost_over_target": costs})
    return rows


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table."""
    return "\n".join(trained_networks.table("Activations", "target", rows, "cost_over_target")) + "\n"


def main() -> None:
    """Trains what is missing, and writes and prints the table."""
    arguments = trained_networks.argument_parser(__doc__, workdir="runs/activation_types", seeds=3).parse_args()
    networks, data = map(Network, TYPES), {"data.data_dir": arguments.data_dir}
    trained_networks.run(arguments, RESULTS, networks=networks, data=data, train=train, read=read, markdown=markdown)


if __name__ == "__main__":
    sys.exit(main())
