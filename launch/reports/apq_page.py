"""A page about an APQ experiment: fronts, found networks, predictors, evolution."""

import html
import json
import pathlib
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from apq_jax import architectures
from launch.apq.pipeline import SUMMARY
from launch.reports import apq_figures
from launch.reports.page import card, html_table, page


def _columns(summary: dict[str, Any]) -> list[str]:
    units = summary["search"]["units"]
    names = [f"{_words(cost)} ({unit})" if cost != "bit_operations" else "Mbit ops" for cost, unit in units.items()]
    return ["budget", *names, "predicted", "validation", "test"]


def _row(network: dict[str, Any]) -> list[str]:
    accuracies = [network[key] for key in ("predicted_accuracy", "validation_accuracy", "accuracy")]
    return [
        _budget(network),
        *(
            f"{value / 1e6:,.1f}" if cost == "bit_operations" else f"{value:.4g}"
            for cost, value in network["costs"].items()
        ),
        *(f"{100 * value:.2f} %" for value in accuracies),
    ]


def _words(cost: str) -> str:
    return cost.replace("_", " ")


def _budget(network: dict[str, Any]) -> str:
    return ", ".join(f"{limit:g}" for limit in network["budget"].values())


def print_table(summary: dict[str, Any], console: Console) -> None:
    """Prints the found networks."""
    table = Table(*_columns(summary), box=box.SIMPLE_HEAD)
    for network in summary["networks"]:
        table.add_row(*_row(network))
    console.print(table)


def predictor_table(curve: list[dict[str, Any]]) -> list[str]:
    """Lines of Markdown: how predictors agree with held-out records, against the number that they learnt from."""
    lines = [
        "| quantised records | pairs in order, transferred / from scratch | Kendall τ | error (points) |",
        "|---|---|---|---|",
    ]
    for point in curve:
        both = [point["transferred"], point["from_scratch"]]
        cells = (
            " / ".join(f"{100 * each['pairwise']:.1f} %" for each in both),
            " / ".join(f"{each['kendall']:.2f}" for each in both),
            " / ".join(f"{100 * each['error']:.1f}" for each in both),
        )
        lines.append(f"| {point['records']} | {' | '.join(cells)} |")
    return lines


def markdown(summary: dict[str, Any]) -> str:
    """The tables of the README: the found networks, the predictors, and what it all cost."""
    columns = _columns(summary)
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    lines += [f"| {' | '.join(_row(network))} |" for network in summary["networks"]]
    lines += ["", *predictor_table(summary["predictor"]["quantized"])]
    lines += ["", "| | seconds | CO2e (g) | cloud ($) |", "|---|---|---|---|"]
    for name, key, seconds in (
        ("once for all", "design", summary["supernet"]["seconds"]),
        ("for each device", "search", summary["search"]["seconds_with_compilation"]),
    ):
        spent = summary["footprint"][key]
        low, high = spent["dollars"]
        lines.append(f"| {name} | {seconds:,.0f} | {1000 * spent['co2e_kilograms']:.2g} | {low:.2g} – {high:.2g} |")
    return "\n".join(lines) + "\n"


def write(workdir: pathlib.Path) -> pathlib.Path:
    """Writes `report.html` about a finished experiment; returns its path."""
    summary = json.loads((workdir / SUMMARY).read_text())
    networks, searched, config = summary["networks"], summary["search"], summary["config"]
    best = max(networks, key=lambda network: network["accuracy"])
    final = summary["predictor"]["final"]
    lead = (
        f"One once-for-all network of the space {config['space']!r}, and {len(networks)} networks searched in it in "
        f"{searched['seconds']:.2f} s, cut out, quantised and fine-tuned."
    )
    tiles = [
        (f"{100 * best['accuracy']:.2f} %", "test accuracy of the best", "main"),
        (f"{searched['seconds']:.2f} s", f"search for {len(networks)} budgets", ""),
        (f"{100 * final['pairwise']:.1f} %", "pairs the predictor puts in order", ""),
        (f"{summary['supernet']['seconds']:,.0f} s", "training once for all", ""),
    ]
    path = workdir / "report.html"
    path.write_text(page(f"APQ on {config['data']['name']}", lead, tiles, _cards(summary)))
    return path


def _cards(summary: dict[str, Any]) -> list[str]:
    networks, searched, config = summary["networks"], summary["search"], summary["config"]
    space = architectures.find(config["space"], config["image_size"])
    names = [_budget(network) for network in networks]
    sets = [_budget({"budget": budget}) for budget in searched["budgets"]]
    settings = json.dumps(config, indent=1)
    rows = [(_row(network), False) for network in networks]
    low, high = summary["footprint"]["search"]["dollars"]
    grams = 1000 * summary["footprint"]["search"]["co2e_kilograms"]
    return [
        *(
            card(
                f"Accuracy against {_words(cost)}",
                "Each point is a network searched for one budget.",
                apq_figures.front(networks, cost, unit),
            )
            for cost, unit in searched["units"].items()
        ),
        card(
            "Predictors",
            "On held-out quantised records (the paper's Figure 7).",
            apq_figures.predictor_curve(summary["predictor"]["quantized"]),
        ),
        card(
            "Found networks",
            "A bar per block, as high as its share of the channels that it could have; colours are bits of pointwise "
            "weights. Rows are budgets.",
            apq_figures.networks_by_block(networks, names, {b.name: b.channels[-1] for b in space.blocks}),
            wide=True,
        ),
        card("Results", "", html_table(_columns(summary), rows), wide=True),
        card(
            "Evolution",
            "Best predicted accuracy, a line for each budget.",
            apq_figures.evolution(searched["history"], sets, config["search"]["generations"]),
        ),
        card(
            "Settings",
            f"A search for another device takes {searched['seconds_with_compilation']:.1f} s with compilation: "
            f"{grams:.2g} g of CO2e, ${low:.1g} to ${high:.1g} of cloud computing.",
            f"<details><summary>config</summary><pre>{html.escape(settings)}</pre></details>",
        ),
    ]
