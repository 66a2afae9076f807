"""Finished runs read from their directories, and their comparison."""

import dataclasses
import itertools
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from hwcost.genome_file import names_genome_file
from launch.reports.figures import network_of, quality_on_test
from launch.training.earlier_configs import of_today
from launch.training.experiment import FIXED, RANDOM_SEARCH, SEARCHED, UNIFORM
from launch.training.run_directory import SUMMARY, read_json

SMALLEST_GAP_POINTS = 1.0  # two seeds of one network differ by about half a point

_NEEDED = ("name", "quality", "cost", "cost_name", "cost_unit", "layers")  # of a summary


@dataclasses.dataclass(frozen=True)
class RecordedRun:
    """A finished run: its directory and its summary."""

    directory: pathlib.Path
    summary: dict[str, Any]

    @property
    def searched(self) -> bool:
        """Whether the run is not a uniform baseline."""
        return self.summary["kind"] != UNIFORM

    @property
    def bits_over_depth(self) -> str:
        """Bits of the layers in order, as text; `4×5` stands for five layers of 4 bits."""
        runs = [
            (bits, len(list(group))) for bits, group in itertools.groupby(x["bits"] for x in self.summary["layers"])
        ]
        return " ".join(f"{bits}×{count}" if count > 1 else str(bits) for bits, count in runs)

    @property
    def mean_bits(self) -> float:
        """Mean bits of the layers, weighted by MACs."""
        layers = self.summary["layers"]
        macs = sum(layer["macs"] for layer in layers)
        return sum(layer["bits"] * layer["macs"] for layer in layers) / max(macs, 1)


def read_runs(directories: Sequence[pathlib.Path]) -> list[RecordedRun]:
    """The runs in `directories`, without duplicates.

    Each is followed by those of its other targets and by its uniform baselines, which are below it, in ascending cost.

    Runs with equal names get the names of their directories appended, or of those above them that differ.

    Raises:
      ValueError: a directory holds no finished run, or runs are on different data.
    """
    runs_by_path: dict[pathlib.Path, RecordedRun] = {}
    for directory in directories:
        if not (directory / SUMMARY).exists():
            raise ValueError(f"{directory} holds no finished run: it has no {SUMMARY}")
        for pattern in (".", "target-*", "uniform-*"):
            found = [_read(path.parent) for path in directory.glob(f"{pattern}/{SUMMARY}")]
            for run in sorted(found, key=lambda run: run.summary["cost"]):
                runs_by_path[run.directory.resolve()] = run
    runs = list(runs_by_path.values())
    _check_comparable(runs)
    for name in {run.summary["name"] for run in runs}:
        namesakes = [run for run in runs if run.summary["name"] == name]
        if len(namesakes) > 1:
            places = _telling_apart([run.directory.resolve() for run in namesakes])
            for run, place in zip(namesakes, places, strict=True):
                run.summary["name"] = f"{name} ({place})"
    return runs


def _check_comparable(runs: Sequence[RecordedRun]) -> None:
    """Checks that all runs are on the data of the first."""
    first, *others = ((run.summary["quality"], run.summary["config"]["data"]["name"]) for run in runs)
    for run, figure in zip(runs[1:], others, strict=True):
        if figure[1] != first[1]:
            raise ValueError(
                f"{run.directory} has {' on '.join(figure)}, {runs[0].directory} {' on '.join(first)}: expected the "
                "same data of all runs"
            )


def _telling_apart(directories: Sequence[pathlib.Path]) -> list[str]:
    """A name for each directory: the first parts of their paths that differ, or the whole paths from there."""
    below = [directory.relative_to(os.path.commonpath(directories)) for directory in directories]
    names = [(path.parts or (directory.name,))[0] for path, directory in zip(below, directories, strict=True)]
    return names if len(set(names)) == len(names) else [str(path) for path in below]


def _read(directory: pathlib.Path) -> RecordedRun:
    summary = read_json(directory / SUMMARY)
    try:
        summary["config"] = of_today(summary["config"])
        if "kind" not in summary:
            summary["kind"] = _kind_of_earlier_version(summary["config"])
        for name in (*_NEEDED, summary["quality"]):
            summary[name]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{directory / SUMMARY} is not the summary of a run: {error!r}") from error
    return RecordedRun(directory, summary)


def _kind_of_earlier_version(config: dict[str, Any]) -> str:
    """The kind of a run whose summary does not name it."""
    if config["policy"] == "fixed":
        return FIXED if names_genome_file(config["genome"]) else UNIFORM
    return RANDOM_SEARCH if config["policy"] == "uniform" else SEARCHED


@dataclasses.dataclass(frozen=True)
class Gap:
    """The loss of quality from the most to the least expensive uniform baseline, given by their summaries."""

    cheapest: dict[str, Any]
    dearest: dict[str, Any]

    @property
    def points(self) -> float:
        """The gap in percentage points."""
        return 100 * (quality_on_test(self.dearest) - quality_on_test(self.cheapest))

    def recovered(self, summary: dict[str, Any]) -> float | None:
        """The share of the gap that a run recovers; None if the gap is within the noise of a single run."""
        if self.points < SMALLEST_GAP_POINTS:
            return None
        return 100 * (quality_on_test(summary) - quality_on_test(self.cheapest)) / self.points


def runs_of_first_cost(runs: Sequence[RecordedRun]) -> list[RecordedRun]:
    """The runs whose cost is of the same kind as that of the first run; other costs cannot be compared with it."""
    return [run for run in runs if run.summary["cost_name"] == runs[0].summary["cost_name"]]


def runs_drawn_together(runs: Sequence[RecordedRun]) -> list[RecordedRun]:
    """The runs that one picture of quality against cost can have: of the first run's kind of cost, and quality."""
    return [run for run in runs_of_first_cost(runs) if _quality_of(run) == _quality_of(runs[0])]


def _quality_of(run: RecordedRun) -> tuple[str, Any]:
    """The quality by its name in summaries, and by the one that the config has for it, if any."""
    return run.summary["quality"], run.summary["config"].get("quality")


def _uniform_baselines(runs: Sequence[RecordedRun]) -> list[dict[str, Any]]:
    """Summaries of the uniform baselines with the cost, the quality, the network and the data of the first run."""
    first = runs[0].summary
    return [
        run.summary
        for run in runs_drawn_together(runs)
        if not run.searched and network_of(run.summary) == network_of(first) and _data_of(run) == _data_of(runs[0])
    ]


def _data_of(run: RecordedRun) -> tuple[Any, ...]:
    """What says which examples a run was tested on; a file may have moved to another folder."""
    settings = run.summary["config"]["data"]
    own = (settings.get(key) for key in ("name", "test_split", "test_fraction", "image_size"))
    digests = run.summary.get("inputs") or {}  # Summaries of earlier versions have none.
    return (*own, pathlib.Path(settings.get("file") or "").name, digests.get("data"), digests.get("data.file"))


def uniform_gap(runs: Sequence[RecordedRun]) -> Gap | None:
    """The gap between uniform baselines of the first run's network, data, quality and cost; None if fewer than two."""
    uniform = sorted(_uniform_baselines(runs), key=lambda s: (s["cost"], -quality_on_test(s)))
    return Gap(uniform[0], uniform[-1]) if len(uniform) > 1 else None


def gain(runs: Sequence[RecordedRun]) -> str | None:
    """A sentence on what the first run gained, for how much, against what; None if there is no baseline.

    The run stands between two uniform baselines: the best of those that cost no more, and the cheapest of the others.
    """
    main = runs[0].summary
    uniform = _uniform_baselines(runs)
    if not runs[0].searched or not uniform:
        return None
    below = max((s for s in uniform if s["cost"] <= main["cost"]), key=quality_on_test, default=None)
    above = min((s for s in uniform if s["cost"] > main["cost"]), key=lambda s: s["cost"], default=None)
    against = [_against(main, baseline) for baseline in (below, above) if baseline is not None]
    return f"{main['name']}: {100 * quality_on_test(main):.2f} % on test, {', and '.join(against)}."


def _against(summary: dict[str, Any], baseline: dict[str, Any]) -> str:
    """How a run compares with a baseline; what is less than the noise of a single run is no difference."""
    points = 100 * (quality_on_test(summary) - quality_on_test(baseline))
    if abs(points) < SMALLEST_GAP_POINTS:
        difference = f"within a point of {baseline['name']} ({100 * quality_on_test(baseline):.2f} %)"
    else:
        difference = f"{abs(points):.2f} points {'above' if points > 0 else 'below'} {baseline['name']}"
    if not baseline["cost"]:
        return f"{difference}, which costs nothing"
    return f"{difference} for {summary['cost'] / baseline['cost']:.2f} × its cost"
