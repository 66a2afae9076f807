"""Finished runs as their directories hold them, and how they compare."""

import dataclasses
import itertools
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from hwcost.genome_file import names_genome_file
from launch.reports.figures import quality_on_test
from launch.training.experiment import FIXED, RANDOM_SEARCH, SEARCHED, UNIFORM
from launch.training.run_directory import SUMMARY

SMALLEST_GAP_POINTS = 1.0  # Two seeds of one network differ by about half a point on these data sets.


@dataclasses.dataclass(frozen=True)
class RecordedRun:
    """A finished run, as its directory holds it."""

    directory: pathlib.Path
    summary: dict[str, Any]

    @property
    def searched(self) -> bool:
        """Whether the network is no uniform baseline."""
        return self.summary["kind"] != UNIFORM

    @property
    def bits_over_depth(self) -> str:
        """Bits of the layers in order; `4×5` stands for five layers of 4 bits."""
        runs = [
            (bits, len(list(group))) for bits, group in itertools.groupby(x["bits"] for x in self.summary["layers"])
        ]
        return " ".join(f"{bits}×{count}" if count > 1 else str(bits) for bits, count in runs)

    @property
    def mean_bits(self) -> float:
        """Bits per layer, weighted by MACs."""
        layers = self.summary["layers"]
        return sum(layer["bits"] * layer["macs"] for layer in layers) / sum(layer["macs"] for layer in layers)


def read_runs(directories: Sequence[pathlib.Path]) -> list[RecordedRun]:
    """The runs in `directories`, each once and followed by those in the uniform-* directories below it, cheapest first.

    Runs of the same name are told apart by their directories.

    Raises:
      ValueError: a directory without a finished run.
    """
    found: dict[pathlib.Path, RecordedRun] = {}
    for directory in directories:
        if not (directory / SUMMARY).exists():
            raise ValueError(f"{directory} holds no finished run: it has no {SUMMARY}")
        below = [_read(path.parent) for path in directory.glob(f"uniform-*/{SUMMARY}")]
        for run in (_read(directory), *sorted(below, key=lambda run: run.summary["cost"])):
            found[run.directory.resolve()] = run
    runs = list(found.values())
    names = [run.summary["name"] for run in runs]
    for run, name in zip(runs, names, strict=True):
        if names.count(name) > 1:
            run.summary["name"] = f"{name} ({run.directory.resolve().name})"
    return runs


def _read(directory: pathlib.Path) -> RecordedRun:
    summary = json.loads((directory / SUMMARY).read_text())
    if "kind" not in summary:
        summary["kind"] = _kind_of_earlier_version(summary["config"])
    return RecordedRun(directory, summary)


def _kind_of_earlier_version(config: dict[str, Any]) -> str:
    """What a run is whose summary does not say it."""
    if config["policy"] == "fixed":
        return FIXED if names_genome_file(config["genome"]) else UNIFORM
    return RANDOM_SEARCH if config["policy"] == "uniform" else SEARCHED


@dataclasses.dataclass(frozen=True)
class Gap:
    """The quality that the cheapest format loses against the dearest one, both in all layers."""

    cheapest: dict[str, Any]
    dearest: dict[str, Any]

    @property
    def points(self) -> float:
        """Its size in percentage points."""
        return 100 * (quality_on_test(self.dearest) - quality_on_test(self.cheapest))

    def recovered(self, summary: dict[str, Any]) -> float | None:
        """The share of it that a network wins back; None where the gap is within the noise of a run."""
        if self.points < SMALLEST_GAP_POINTS:
            return None
        return 100 * (quality_on_test(summary) - quality_on_test(self.cheapest)) / self.points


def paying_alike(runs: Sequence[RecordedRun]) -> list[RecordedRun]:
    """Those whose cost is of the kind of the first one's; others cannot be compared with it."""
    return [run for run in runs if run.summary["cost_name"] == runs[0].summary["cost_name"]]


def uniform_gap(runs: Sequence[RecordedRun]) -> Gap | None:
    """The gap between the uniform networks of the same kind of cost as the first run; None where there are no two."""
    uniform = sorted(
        (run.summary for run in paying_alike(runs) if not run.searched), key=lambda s: (s["cost"], -quality_on_test(s))
    )
    return Gap(uniform[0], uniform[-1]) if len(uniform) > 1 else None
