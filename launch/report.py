"""The report: one self-contained HTML page about a run, or about several.

    python -m launch.report DIR [DIR …] [--out=FILE]

Each DIR is a run directory; the uniform baselines below it belong to it. The page goes to the first DIR.
"""

import argparse
import dataclasses
import html
import json
import pathlib
import string
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from aqt_like import formats as formats_lib
from launch import figures, progress
from launch.runs import METRICS, SUMMARY

_TEMPLATE = pathlib.Path(__file__).with_name("report_template.html")
_HEATMAP_LINES = 240


@dataclasses.dataclass(frozen=True)
class RecordedRun:
    """A finished run, as its directory holds it."""

    directory: pathlib.Path
    summary: dict[str, Any]

    @property
    def searched(self) -> bool:
        return not figures.is_uniform(self.summary)

    @property
    def mean_bits(self) -> float:
        """Bits per layer, weighted by MACs."""
        layers = self.summary["layers"]
        return sum(layer["bits"] * layer["macs"] for layer in layers) / sum(layer["macs"] for layer in layers)


def read_runs(directories: Sequence[pathlib.Path]) -> list[RecordedRun]:
    """The runs in `directories` and in the uniform-* directories below them, each once.

    Raises:
      ValueError: a directory without a finished run.
    """
    found: dict[pathlib.Path, RecordedRun] = {}
    for directory in directories:
        for path in (directory, *sorted(directory.glob("uniform-*"))):
            if (path / SUMMARY).exists():
                found[path.resolve()] = RecordedRun(path, json.loads((path / SUMMARY).read_text()))
            elif path == directory:
                raise ValueError(f"{path} holds no finished run: it has no {SUMMARY}")
    return list(found.values())


def recovered_share(runs: Sequence[RecordedRun], run: RecordedRun) -> float | None:
    """How much of the accuracy gap between the cheapest and the dearest uniform network `run` closes; None without them."""
    uniform = sorted((r.summary for r in runs if not r.searched), key=lambda s: s["cost"])
    if len(uniform) < 2 or uniform[0]["accuracy"] >= uniform[-1]["accuracy"]:
        return None
    low, high = uniform[0]["accuracy"], uniform[-1]["accuracy"]
    return (run.summary["accuracy"] - low) / (high - low)


_COLUMNS = ("network", "accuracy", "cost (M bit operations)", "cost / target", "bits per MAC", "bits of each layer")


def _row(run: RecordedRun) -> tuple[str, ...]:
    s = run.summary
    return (
        s["name"],
        f"{100 * s['accuracy']:.2f} %",
        f"{s['cost'] / 1e6:,.1f}",
        f"{s['relative_cost']:.3f}",
        f"{run.mean_bits:.2f}",
        " ".join(str(layer["bits"]) for layer in s["layers"]),
    )


def print_table(runs: Sequence[RecordedRun], console: Console) -> None:
    """Prints the comparison of `runs`."""
    table = Table()
    for i, column in enumerate(_COLUMNS):
        table.add_column(column, justify="left" if i in (0, len(_COLUMNS) - 1) else "right", overflow="fold")
    for run in runs:
        table.add_row(*_row(run), style="bold" if run.searched else None)
    console.print(table)


def write(directories: Sequence[pathlib.Path], path: pathlib.Path) -> pathlib.Path:
    """Writes the page about the runs in `directories`, the first of which is told in full; returns `path`."""
    runs = read_runs(directories)
    main = runs[0]
    summary = main.summary
    lines = progress.read_metrics(main.directory / METRICS)
    data_name = summary["config"]["data"]["name"]
    share = recovered_share(runs, main) if main.searched else None
    uniform = sorted((r.summary for r in runs if not r.searched), key=lambda s: s["cost"])
    lead = (
        f"Test accuracy {100 * summary['accuracy']:.2f} % at {summary['relative_cost']:.3f} × the cost target of "
        f"{summary['target'] / 1e6:,.1f} million bit operations."
    )
    if share is not None:
        lead += (
            f" That is {100 * share:.0f} % of the way from {uniform[0]['name']} "
            f"({100 * uniform[0]['accuracy']:.2f} %) to {uniform[-1]['name']} ({100 * uniform[-1]['accuracy']:.2f} %)."
        )
    tiles = [
        (f"{100 * summary['accuracy']:.2f} %", "test accuracy", "main"),
        (f"{summary['relative_cost']:.3f}", "cost / target", ""),
        (f"{main.mean_bits:.2f}", "bits per MAC", ""),
        (f"{summary['seconds']:,.0f} s", f"training, {summary['steps_per_second']:.1f} steps/s", ""),
    ]
    if share is not None:
        tiles.insert(1, (f"{100 * share:.0f} %", "of the accuracy gap recovered", ""))
    page = string.Template(_TEMPLATE.read_text()).substitute(
        title=html.escape(f"{summary['name']} on {data_name}"),
        lead=html.escape(lead),
        tiles="".join(f'<div class="tile {kind}"><b>{value}</b><span>{label}</span></div>' for value, label, kind in tiles),
        cards="".join(_cards(runs, lines)),
    )
    path.write_text(page)
    return path


def _cards(runs: Sequence[RecordedRun], lines: Sequence[dict[str, Any]]) -> list[str]:
    main = runs[0]
    config = main.summary["config"]
    searched = [run.summary for run in runs if run.searched] or [main.summary]
    cards = [
        _card("Accuracy against cost", "Stars are searched, dots have one format in all layers.", figures.pareto([r.summary for r in runs])),
        _card("Format of each layer", "From input to output; the warmer, the fewer bits.", figures.formats_over_depth([s for s in searched if len(s["layers"]) == len(searched[0]["layers"])])),
        _card("Results", "", _table(runs), wide=True),
    ]  # fmt: skip
    if lines:
        timed = [line | {"milliseconds": 1000 / line["steps_per_second"]} for line in lines]
        warmup = round(config["warmup_fraction"] * lines[-1]["step"])
        cards += [
            _card("Accuracy while training", "On training batches, and on the validation batches that the reward is computed on.", figures.curve(lines, {"train_accuracy": "train", "valid_quality": "validation"}, "accuracy")),
            _card("Sampled cost", "Of the networks drawn at each step; dotted: the target.", figures.curve(lines, {"relative_cost": "cost / target"}, "cost / target", reference=1.0)),
            _card("Reward", f"γ = {config['gamma']:g}, {config['reward'].replace('_', ' ')}.", figures.curve(lines, {"reward": "reward"}, "reward")),
            _card("Entropy of the policy", f"A sum over layers; formats are drawn uniformly for the first {warmup} steps.", figures.curve(lines, {"entropy": "entropy"}, "entropy (nats)")),
        ]  # fmt: skip
        if main.summary["policy"] == "reinforce":
            layers = [layer["path"] for layer in main.summary["layers"]]
            options = formats_lib.format_space(config["formats"])
            kept = lines[:: max(len(lines) // _HEATMAP_LINES, 1)]
            picture = figures.policy_over_time(kept, layers, [f.name for f in options], [f.bits for f in options])
            cards.append(_card("The policy over time", "A band per layer, a row per format in it: the stronger, the more probable.", picture))  # fmt: skip
        cards.append(_card("Step time", "", figures.curve(timed, {"milliseconds": "step time"}, "step time (ms)")))
    settings = html.escape(json.dumps({k: main.summary[k] for k in ("config", "versions", "device", "seed")}, indent=1))
    cards.append(_card("Settings", "", f"<details><summary>config and versions</summary><pre>{settings}</pre></details>", wide=True))  # fmt: skip
    return cards


def _card(heading: str, text: str, body: str, *, wide: bool = False) -> str:
    paragraph = f"<p>{html.escape(text)}</p>" if text else ""
    return f'<section class="card{" wide" if wide else ""}"><h2>{html.escape(heading)}</h2>{paragraph}{body}</section>'


def _table(runs: Sequence[RecordedRun]) -> str:
    head = "".join(f"<th>{html.escape(column)}</th>" for column in _COLUMNS)
    rows = "".join(
        f'<tr{" class=searched" if run.searched else ""}>{"".join(f"<td>{html.escape(cell)}</td>" for cell in _row(run))}</tr>'
        for run in runs
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def main(argv: Sequence[str] | None = None) -> None:
    """Writes the report about the run directories named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directories", nargs="+", type=pathlib.Path, metavar="DIR")
    parser.add_argument("--out", type=pathlib.Path, help="where the page goes; DIR/report.html by default")
    arguments = parser.parse_args(argv)
    try:
        path = write(arguments.directories, arguments.out or arguments.directories[0] / "report.html")
        print_table(read_runs(arguments.directories), Console())
    except ValueError as error:
        sys.exit(f"error: {error}")
    print(f"report: {path}")


if __name__ == "__main__":
    main()
