"""The report: one self-contained HTML page about a run, or about several.

    python -m launch.report DIR [DIR …] [--out=FILE] [--json=FILE]

Each DIR is a run directory; the uniform baselines below it belong to it. The page goes to the first DIR, and the table
of results to the JSON file as well, if one is named.
"""

import argparse
import dataclasses
import html
import itertools
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from aqt_like import formats as formats_lib
from launch import figures, progress
from launch.figures import quality_of
from launch.page import card, page, table_of
from launch.runs import METRICS, SUMMARY

_HEATMAP_LINES = 240
SMALLEST_GAP_POINTS = 1.0  # Two seeds of one network differ by about half a point on these data sets.


@dataclasses.dataclass(frozen=True)
class RecordedRun:
    """A finished run, as its directory holds it."""

    directory: pathlib.Path
    summary: dict[str, Any]

    @property
    def searched(self) -> bool:
        """Whether the layers' formats were not simply given as one."""
        return not figures.is_uniform(self.summary)

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
    return RecordedRun(directory, json.loads((directory / SUMMARY).read_text()))


@dataclasses.dataclass(frozen=True)
class Gap:
    """The quality that the cheapest format loses against the dearest one, both in all layers."""

    cheapest: dict[str, Any]
    dearest: dict[str, Any]

    @property
    def points(self) -> float:
        """Its size in percentage points."""
        return 100 * (quality_of(self.dearest) - quality_of(self.cheapest))

    def recovered(self, summary: dict[str, Any]) -> float | None:
        """The share of it that a network wins back; None where the gap is within the noise of a run."""
        if self.points < SMALLEST_GAP_POINTS:
            return None
        return 100 * (quality_of(summary) - quality_of(self.cheapest)) / self.points


def _paying_alike(runs: Sequence[RecordedRun]) -> list[RecordedRun]:
    """Those whose cost is of the kind of the first one's; others cannot be compared with it."""
    return [run for run in runs if run.summary["cost_name"] == runs[0].summary["cost_name"]]


def uniform_gap(runs: Sequence[RecordedRun]) -> Gap | None:
    """The gap between the uniform networks of the same kind of cost as the first run; None where there are no two."""
    uniform = sorted(
        (run.summary for run in _paying_alike(runs) if not run.searched), key=lambda s: (s["cost"], -quality_of(s))
    )
    return Gap(uniform[0], uniform[-1]) if len(uniform) > 1 else None


def _columns(runs: Sequence[RecordedRun]) -> tuple[str, ...]:
    _, unit = figures.readable_cost(runs[0].summary["cost_unit"])
    return ("network", runs[0].summary["quality"], unit, "cost / target", "bits per MAC", "bits of each layer")


def _row(run: RecordedRun, runs: Sequence[RecordedRun]) -> tuple[str, ...]:
    s = run.summary
    factor, unit = figures.readable_cost(s["cost_unit"])
    paid = s["cost"] * factor
    own_unit = "" if run in _paying_alike(runs) else f" {unit}"
    return (
        s["name"],
        f"{100 * quality_of(s):.2f} %",
        f"{paid:,.{1 if paid >= 0.5 else 4}f}{own_unit}",
        f"{s['relative_cost']:.3f}",
        f"{run.mean_bits:.2f}",
        run.bits_over_depth,
    )


def print_table(runs: Sequence[RecordedRun], console: Console) -> None:
    """Prints the comparison of `runs`."""
    table = Table(box=box.SIMPLE_HEAD)
    columns = _columns(runs)
    for i, column in enumerate(columns):
        last = i == len(columns) - 1
        table.add_column(column, justify="left" if i == 0 or last else "right", overflow="fold", no_wrap=not last)
    for run in runs:
        table.add_row(*_row(run, runs), style="bold" if run.searched else None)
    console.print(table)


def write(directories: Sequence[pathlib.Path], path: pathlib.Path) -> pathlib.Path:
    """Writes the page about the runs in `directories`, the first of which is told in full; returns `path`."""
    runs = read_runs(directories)
    main = runs[0]
    summary = main.summary
    lines = progress.read_metrics(main.directory / METRICS)
    factor, unit = figures.readable_cost(summary["cost_unit"])
    name, data_name = summary["quality"], summary["config"]["data"]["name"]
    lead = (
        f"Test {name} {100 * quality_of(summary):.2f} % at {summary['relative_cost']:.3f} × the cost target of "
        f"{summary['target'] * factor:,.4g} {unit}."
    ) + "".join(
        f" Of {budget['name']}, {budget['cost']:,.4g} {budget['unit']} where {budget['target']:,.4g} were allowed."
        for budget in summary["budgets"][1:]
    )
    tiles = [
        (f"{100 * quality_of(summary):.2f} %", f"test {name}", "main"),
        (f"{summary['relative_cost']:.3f}", "cost / target", ""),
        (f"{main.mean_bits:.2f}", "bits per MAC", ""),
        (f"{summary['seconds']:,.0f} s", f"training, {summary['steps_per_second']:.1f} steps/s", ""),
    ]
    if main.searched and (gap := uniform_gap(runs)):
        lead += (
            f" From {gap.cheapest['name']} ({100 * quality_of(gap.cheapest):.2f} %) to {gap.dearest['name']} "
            f"({100 * quality_of(gap.dearest):.2f} %) is a gap of {gap.points:.2f} points"
        )
        if (share := gap.recovered(summary)) is None:
            lead += ", which is within the noise of a single run."
        else:
            lead += f"; the search recovers {100 * share:.0f} % of it."
            tiles.insert(1, (f"{100 * share:.0f} %", f"of the {name} gap recovered", ""))
    path.write_text(page(f"{summary['name']} on {data_name}", lead, tiles, _cards(runs, lines)))
    return path


def _cards(runs: Sequence[RecordedRun], lines: Sequence[dict[str, Any]]) -> list[str]:
    main = runs[0].summary
    searched = [run.summary for run in runs if run.searched] or [main]
    alike = [summary for summary in searched if _paths(summary) == _paths(searched[0])]
    settings = json.dumps({key: main[key] for key in ("config", "versions", "device", "seed")}, indent=1)
    return [
        card(
            f"{_capital(main['quality'])} against cost",
            "Stars are searched, dots have one format in all layers.",
            figures.pareto([run.summary for run in _paying_alike(runs)]),
        ),
        card(
            "Format of each layer",
            "From input to output; the warmer, the fewer bits.",
            figures.formats_over_depth(alike),
        ),
        card(
            "Where the cost is",
            _shares_of(main),
            figures.cost_shares(main),
        ),
        card("Results", "", _table(runs), wide=True),
        *(_training_cards(main, lines) if lines else ()),
        card(
            "Settings",
            _footprint(main),
            f"<details><summary>config and versions</summary><pre>{html.escape(settings)}</pre></details>",
            wide=True,
        ),
    ]


def _shares_of(summary: dict[str, Any]) -> str:
    name = summary["cost_name"].replace("_", " ")
    text = f"Each layer's share of {name}" + (", and of bit operations." if name != "bit operations" else ".")
    estimates = [layer["path"] for layer in summary["layers"] if layer["cost_is_estimate"]]
    return text + (f" Interpolated, not measured: {', '.join(estimates)}." if estimates else "")


def _footprint(summary: dict[str, Any]) -> str:
    """What training took, in a sentence."""
    footprint, rates = summary["footprint"], summary["config"]["footprint"]
    low, high = footprint["dollars"]
    return (
        f"Training drew {1000 * footprint['kilowatt_hours']:,.3g} Wh at {rates['watts']:g} W, which stand for "
        f"{1000 * footprint['co2e_kilograms']:,.3g} g of CO2e and ${low:,.2g} to ${high:,.2g} of cloud computing."
    )


def _training_cards(summary: dict[str, Any], lines: Sequence[dict[str, Any]]) -> list[str]:
    """Pictures of the course of one run."""
    config = summary["config"]
    warmup = round(config["warmup_fraction"] * lines[-1]["step"])
    timed = [line | {"milliseconds": 1000 / line["steps_per_second"]} for line in lines]
    cards = [
        card(
            f"{_capital(summary['quality'])} while training",
            "On training batches, and on the validation batches that the reward is computed on.",
            figures.curve(lines, {"train_quality": "train", "valid_quality": "validation"}, summary["quality"]),
        ),
        card(
            "Sampled cost",
            "Of the networks drawn at each step; dotted: the target.",
            figures.curve(lines, {"relative_cost": "cost / target"}, "cost / target", reference=1.0),
        ),
        card(
            "Reward",
            f"The {config['reward'].replace('_', ' ')} reward with γ = {config['gamma']:g}.",
            figures.curve(lines, {"reward": "reward"}, "reward"),
        ),
        card(
            "Entropy of the policy",
            f"A sum over layers. Formats are drawn uniformly for the first {warmup} steps.",
            figures.curve(lines, {"entropy": "entropy"}, "entropy (nats)"),
        ),
    ]
    if summary["policy"] == "reinforce":
        decisions = [
            decision | {"bits": [formats_lib.parse_layer(option).bits for option in decision["options"]]}
            for decision in summary["decisions"]
        ]
        picture = figures.policy_over_time(lines[:: max(len(lines) // _HEATMAP_LINES, 1)], decisions)
        explanation = "A band per decision, a row per format in it: the stronger, the more probable."
        cards.append(card("The policy over time", explanation, picture))
    cards.append(card("Step time", "", figures.curve(timed, {"milliseconds": "step time"}, "step time (ms)")))
    return cards


def _capital(name: str) -> str:
    return name[:1].upper() + name[1:]


def _paths(summary: dict[str, Any]) -> list[str]:
    return [layer["path"] for layer in summary["layers"]]


def _table(runs: Sequence[RecordedRun]) -> str:
    return table_of(_columns(runs), [(_row(run, runs), run.searched) for run in runs])


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the report about the run directories named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directories", nargs="+", type=pathlib.Path, metavar="DIR")
    parser.add_argument("--out", type=pathlib.Path, help="where the page goes; DIR/report.html by default")
    parser.add_argument("--json", type=pathlib.Path, help="where the table goes as well")
    arguments = parser.parse_args(argv)
    try:
        path = write(arguments.directories, arguments.out or arguments.directories[0] / "report.html")
        runs = read_runs(arguments.directories)
        console = Console()
        print_table(runs, console if console.is_terminal else Console(width=120))
        if arguments.json:
            table = [dict(zip(_columns(runs), _row(run, runs), strict=True)) for run in runs]
            arguments.json.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n")
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(f"report: {path}")


if __name__ == "__main__":
    main()
