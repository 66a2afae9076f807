"""Accuracy of networks whose activations are stored in bfloat16 between layers, against float32.

    python -m benchmarks.activation_types --data_dir=DIR [--seeds=3] [--workdir=runs/activation_types] [--only=PATTERN]

`configs/fliqs_cifar10_resnet8.py` for four epochs, with the search and all else the same. Finished networks in the work
directory are not trained again. Half an hour of one core; writes results/activation_types.json.
"""

import pathlib
import sys
from typing import Any, NamedTuple

from aqt_like.stored_activations import TYPES
from benchmarks import trained_networks
from configs import fliqs_cifar10_resnet8
from launch.training.interruption import StopRequested

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
    """Trains a network with a seed; `data` are settings of where the data are."""
    config = fliqs_cifar10_resnet8.get_config()
    config.update_from_flattened_dict(data)
    config.seed, config.epochs, config.baselines, config.activations = seed, EPOCHS, (), network.name
    trained_networks.train_network(config, workdir / network.directory / f"seed{seed}", stop)


def read(workdir: pathlib.Path, seeds: int) -> list[dict[str, Any]]:
    """A row per type of which there is a finished network."""
    rows = []
    for network in map(Network, TYPES):
        if summaries := trained_networks.summaries(workdir / network.directory, seeds):
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
