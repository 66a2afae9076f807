"""FLIQNAS against its parts, and against what needs no search, at equal bit operations (FLIQS, §6, Figure 6).

    python -m benchmarks.fliqnas --data_dir=DIR [--seeds=2] [--workdir=runs/fliqnas] [--only=PATTERN]

CIFAR-10 averaged to 12×12, networks like MobileNetV2 with two blocks a stage, three epochs each. `scaled` is the base
made wider or narrower until a uniform format costs the target, as a person would without any search; `alone` trains the
network that FLIQNAS found from new weights (FLIQS, A.11). Finished networks in the work directory are not trained
again; those of APQ are read from results/apq_cifar10.json. A night of two cores; writes results/fliqnas.json and
docs/fliqnas.svg.
"""

import bisect
import functools
import json
import pathlib
import statistics
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from aqt_like.formats import parse_layer_format
from benchmarks import pictures, trained_networks
from configs import fliqnas_cifar10
from hwcost import analytic
from launch.cost import network_workload
from launch.reports import charts
from launch.training.interruption import StopRequested
from launch.training.run_directory import GENOME

RESULTS = pathlib.Path(__file__).parent / "results" / "fliqnas.json"
APQ = RESULTS.with_name("apq_cifar10.json")
STAGES = ((1, 8, 1, 1), (6, 16, 2, 1), (6, 24, 2, 2), (6, 40, 2, 2))
MIDDLE = 3.53
TARGETS = (2.7, MIDDLE, 4.36)  # × int4 of the base (FLIQS, Figure 6)
FLIQNAS = "FLIQNAS int_s"
FORMATS_ALONE: dict[str, Any] = {"architecture": ConfigDict()}
AT_ALL_TARGETS: dict[str, dict[str, Any]] = {FLIQNAS: {}, "FLIQS int_s": FORMATS_ALONE}
IN_THE_MIDDLE: dict[str, dict[str, Any]] = {
    "FLIQNAS int_s, within budget": {  # from the first step on, and the weights train on under the genome found
        "controller.reinforce.within_budget": True,
        "controller.reinforce.warmup_fraction": 0.1,
        "controller.reinforce.freeze_fraction": 0.4,
    },
    "FLIQNAS int_l": {"formats": "int_l"},
    "NAS int8": {"rules": (".*: int8",)},
}
UNIFORM = ("int4", "int8")


class Network(NamedTuple):
    """One network to train.

    Attributes:
      name: what it is, in tables.
      target: of the cost, × int4 of the base; None for the base in one format, whose cost is its own.
      changes: settings.
      scaled: the format in which the base, scaled in width, costs the target.
      found_by: the name of the search whose network is trained.
    """

    name: str
    target: float | None
    changes: dict[str, Any]
    scaled: str = ""
    found_by: str = ""

    @property
    def directory(self) -> str:
        """Its directory below the work directory; seeds are below that."""
        return _directory(self.name, self.target)


def _directory(name: str, target: float | None) -> str:
    return f"{'base' if target is None else f'{target:g}'}/{trained_networks.directory_of(name)}"


def networks() -> Iterator[Network]:
    """All networks, those that others need first."""
    for target in TARGETS:
        for name, changes in AT_ALL_TARGETS.items():
            yield Network(name, target, changes)
        if target == MIDDLE:
            for name, changes in IN_THE_MIDDLE.items():
                yield Network(name, target, changes)
            yield Network(f"{FLIQNAS}, alone", target, {}, found_by=FLIQNAS)
        for name in UNIFORM:
            changes = FORMATS_ALONE | {"policy": "fixed", "genome": name}
            yield Network(f"{name}, scaled", target, changes, scaled=name)
    for name in UNIFORM:
        yield Network(name, None, FORMATS_ALONE | {"policy": "fixed", "genome": name})


def config_of(network: Network, seed: int, workdir: pathlib.Path) -> ConfigDict:
    """The config of a network, but for where the data are."""
    config = fliqnas_cifar10.get_config()
    config.model.stages = STAGES
    for key, value in ({"baselines": (), "seed": seed, "target": network.target or MIDDLE} | network.changes).items():
        if "." in key:
            config.update_from_flattened_dict({key: value})
        else:
            config[key] = value
    if network.scaled:
        assert network.target
        config.model.width, config.model.multiple = scaled_width(network.scaled, network.target), 1
    if network.found_by:
        found = workdir / _directory(network.found_by, network.target) / f"seed{seed}"
        trained_networks.give_genome(config, found / GENOME)
    return config


def bit_operations(format_name: str, width: float = 1.0) -> float:
    """Bit operations of the base in one format, at a width."""
    config = fliqnas_cifar10.get_config()
    size = config.data.image_size
    settings = config.model.to_dict() | {"stages": STAGES, "width": width} | ({} if width == 1 else {"multiple": 1})
    layers = network_workload(settings.pop("name"), classes=10, input_shape=(size, size, 3), **settings)
    return sum(analytic.bit_operations(layer, parse_layer_format(format_name)) for layer in layers)


@functools.cache
def scaled_width(format_name: str, target: float) -> float:
    """The largest width, in hundredths, at which the base in a format costs at most the target, × int4 of the base."""
    hundredths, most = range(50, 250), target * bit_operations("int4")
    above = bisect.bisect_right(hundredths, most, key=lambda width: bit_operations(format_name, width / 100))
    return hundredths[above - 1] / 100


def train(network: Network, seed: int, workdir: pathlib.Path, data: dict[str, Any], stop: StopRequested) -> None:
    """Trains a network with a seed; `data` are settings of where the data are."""
    config = config_of(network, seed, workdir)
    config.update_from_flattened_dict(data)
    trained_networks.train_network(config, workdir / network.directory / f"seed{seed}", stop)


def read(workdir: pathlib.Path, seeds: int) -> list[dict[str, Any]]:
    """A row per network of which there is a finished one, and of those that `benchmarks.apq_cifar10` trained."""
    rows = []
    for network in networks():
        if summaries := trained_networks.summaries(workdir / network.directory, seeds):
            rows.append(_row(network, summaries))
    return rows + json.loads(APQ.read_text())["trained"]


def _row(network: Network, summaries: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "network": network.name,
        "target": network.target,
        **trained_networks.measured(summaries),
        "cost_over_int4": [summary["cost"] / bit_operations("int4") for summary in summaries],
        "policy_entropy": [abs(round(summary["policy_entropy"], 1)) for summary in summaries],
        "rank_correlations": [summary.get("rank_correlations") for summary in summaries],
        "model": [summary["config"]["model"] for summary in summaries],
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    """A table per target, and one of the base."""
    lines = []
    for target in dict.fromkeys(row["target"] for row in rows):
        title = "The base" if target is None else f"{target:g} × int4 of the base"
        of_target = (row for row in rows if row["target"] == target)
        lines += trained_networks.table(title, "int4", of_target, "cost_over_int4")
    return "\n".join(lines) + "\n"


def picture(rows: list[dict[str, Any]]) -> str:
    """Accuracy over cost, a line for each way to a network, as Figure 6 of the paper."""
    ways: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        way = f"{row['network']}, scaled" if row["network"] in UNIFORM else row["network"]
        ways.setdefault(way, []).append((statistics.mean(row["cost_over_int4"]), 100 * row["mean"]))
    series = {way: ([x for x, _ in sorted(points)], [y for _, y in sorted(points)]) for way, points in ways.items()}
    return charts.lines(series, xlabel="bit operations / int4 of the base", ylabel="accuracy (%)")


def main() -> None:
    """Trains what is missing, and writes and prints the tables."""
    arguments = trained_networks.argument_parser(__doc__, workdir="runs/fliqnas", seeds=2).parse_args()
    data = {"data.data_dir": arguments.data_dir}
    found = functools.partial(trained_networks.run, networks=networks(), data=data, train=train, read=read)
    if rows := found(arguments, RESULTS, markdown=markdown):
        pictures.write("fliqnas.svg", picture(rows))


if __name__ == "__main__":
    sys.exit(main())
