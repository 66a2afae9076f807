"""Benchmarks that train many networks with several seeds: what is trained, rows and tables, and the command line."""

import argparse
import fnmatch
import itertools
import json
import pathlib
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from absl import logging
from ml_collections import ConfigDict
from rich.console import Console

from hwcost.genome_file import read_genome
from launch.training import runs
from launch.training.experiment import prepare_experiment
from launch.training.interruption import StopRequested, stop_on_signals
from launch.training.run_directory import SUMMARY


class Network(Protocol):
    """A network to train."""

    @property
    def directory(self) -> str:
        """Its directory below the work directory; seeds are below that."""
        ...


Train = Callable[[Any, int, pathlib.Path, dict[str, Any], StopRequested], None]
"""`(network, seed, work directory, settings of where the data are, stop)`: trains a network."""


def directory_of(name: str) -> str:
    """The name of a network as that of a directory."""
    return name.replace(", ", "-").replace(" ", "-")


def give_genome(config: ConfigDict, file: pathlib.Path) -> None:
    """Makes a config of FLIQNAS train, from new weights, the network of a genome file that a search has left."""
    config.model.update(read_genome(file).architecture)
    config.architecture, config.policy, config.genome = ConfigDict(), "fixed", str(file)


def train_network(config: ConfigDict, directory: pathlib.Path, stop: StopRequested) -> None:
    """Trains the network of a config in a directory."""
    runs.run_all(prepare_experiment(config), directory, Console(), stop)


def summaries(directory: pathlib.Path, seeds: int) -> list[dict[str, Any]]:
    """The summaries of the finished ones of some seeds of a network."""
    paths = [directory / f"seed{seed}" / SUMMARY for seed in range(seeds)]
    return [json.loads(path.read_text()) for path in paths if path.exists()]


def measured(summaries: Sequence[Mapping[str, Any]], quality: str = "accuracy") -> dict[str, Any]:
    """What a row tells of a network with several seeds, from their summaries, by the name of the quality there."""
    values = [summary[quality] for summary in summaries]
    return {
        quality: values,
        "mean": statistics.mean(values),
        "standard_error": statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None,
        "bits": ["".join(f"{layer['bits']:x}" for layer in summary["layers"]) for summary in summaries],
        "steps_per_second": [summary["steps_per_second"] for summary in summaries],
        "device": sorted({summary["device"] for summary in summaries}),
    }


def table(title: str, unit: str, rows: Iterable[Mapping[str, Any]], cost: str, quality: str = "accuracy") -> list[str]:
    """The lines of a table in Markdown; `cost` is the key of each seed's cost in `unit`."""
    lines = [f"\n**{title}**", "", f"| network | {quality} (%) | each seed | cost / {unit} |", "|---|---|---|---|"]
    for row in rows:
        error = "" if row["standard_error"] is None else f" ± {100 * row['standard_error']:.2f}"
        each = ", ".join(f"{100 * each_seed:.2f}" for each_seed in row[quality])
        mean_cost = statistics.mean(row[cost])
        lines.append(f"| {row['network']} | {100 * row['mean']:.2f}{error} | {each} | {mean_cost:.2f} |")
    return lines


def argument_parser(description: str | None, *, workdir: str, seeds: int) -> argparse.ArgumentParser:
    """The command line of such a benchmark, with its defaults."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", help="where tfds has cifar10 prepared")
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path(workdir))
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--only", default="*", help="directories of networks below the work directory, as a pattern")
    parser.add_argument("--tabulate", action="store_true", help="trains nothing")
    return parser


def run(
    arguments: argparse.Namespace,
    results: pathlib.Path,
    *,
    networks: Iterable[Network],
    data: dict[str, Any],
    train: Train,
    read: Callable[[pathlib.Path, int], list[dict[str, Any]]],
    markdown: Callable[[list[dict[str, Any]]], str],
) -> list[dict[str, Any]]:
    """Trains what is missing, one seed of all networks after the other, writes and prints the tables, and returns rows.

    With `--only`, it trains, leaves the tables as they are, and returns nothing.
    """
    logging.set_verbosity(logging.WARNING)
    chosen = [network for network in networks if fnmatch.fnmatch(network.directory, arguments.only)]
    with stop_on_signals() as stop:
        for seed, network in itertools.product(range(arguments.seeds), () if arguments.tabulate else chosen):
            if not (arguments.workdir / network.directory / f"seed{seed}" / SUMMARY).exists():
                train(network, seed, arguments.workdir, data, stop)
    if arguments.only != "*":
        return []
    rows = read(arguments.workdir, arguments.seeds)
    command = f"python -m benchmarks.{results.stem} --data_dir=DIR --seeds={arguments.seeds}"
    results.write_text(json.dumps({"command": command, "networks": rows}, indent=1) + "\n")
    Console().print(markdown(rows), soft_wrap=True)
    return rows
