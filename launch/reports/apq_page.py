"""The report page of an APQ experiment: accuracy against costs, networks found, predictors and evolution."""

import html
import json
import pathlib
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from apq_jax import architectures
from launch.apq.pipeline import KIND, SUMMARY
from launch.apq.search_ways import JOINT
from launch.reports import apq_figures, charts, figures
from launch.reports.page import card, html_table, page, picture_card
from launch.training.run_directory import read_json
from launch.training.settings import ConfigError

_NEEDED = ("networks", "search", "supernet", "predictor", "footprint", "config")  # of a summary


def holds_experiment(directory: pathlib.Path) -> bool:
    """Whether a directory holds a finished APQ experiment; its summary named no kind in earlier versions."""
    if not (directory / SUMMARY).exists():
        return False
    summary = read_json(directory / SUMMARY)
    return summary["kind"] == KIND if "kind" in summary else "networks" in summary


def read_summary(directory: pathlib.Path) -> dict[str, Any]:
    """The summary in the directory of a finished experiment.

    Raises:
      ConfigError: it cannot be read, or is of something else.
    """
    summary = read_json(directory / SUMMARY)
    if lacking := [name for name in _NEEDED if name not in summary]:
        raise ConfigError(
            f"{directory / SUMMARY} is not the summary of an APQ experiment: it lacks {', '.join(lacking)}"
        )
    return summary


def _joint(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """The networks whose bits and architecture were searched together, with transfer."""
    return [network for network in summary["networks"] if apq_figures.way_of(network) == JOINT]


def _compared(summary: dict[str, Any]) -> bool:
    """Whether networks were searched in several ways."""
    return len(set(map(apq_figures.way_of, summary["networks"]))) > 1


def _columns(summary: dict[str, Any]) -> list[str]:
    units = summary["search"]["units"]
    names = [f"{_words(cost)} ({unit})" if cost != "bit_operations" else "Mbit ops" for cost, unit in units.items()]
    return ["budget", *(["searched"] if _compared(summary) else []), *names, "predicted", "validation", "test"]


def _row(summary: dict[str, Any], network: dict[str, Any]) -> list[str]:
    accuracies = [network[key] for key in ("predicted_accuracy", "validation_accuracy", "accuracy")]
    return [
        _budget(summary, network["budget"]),
        *([apq_figures.way_in_words(apq_figures.way_of(network))] if _compared(summary) else []),
        *(
            f"{value / 1e6:,.1f}" if cost == "bit_operations" else f"{value:.4g}"
            for cost, value in network["costs"].items()
        ),
        *(f"{100 * value:.2f} %" for value in accuracies),
    ]


def _words(cost: str) -> str:
    return cost.replace("_", " ")


def _budget(summary: dict[str, Any], budget: dict[str, float]) -> str:
    """A set of budgets in a few words; costs are named only where sets are of unlike costs."""
    alike = len({tuple(each) for each in summary["search"]["budgets"]}) == 1
    return ", ".join(f"{limit:g}" if alike else f"{_words(cost)} {limit:g}" for cost, limit in budget.items())


def rows(summary: dict[str, Any]) -> list[dict[str, str]]:
    """The table of the networks found: a dictionary by column name per network."""
    return [dict(zip(_columns(summary), _row(summary, network), strict=True)) for network in summary["networks"]]


def print_table(summary: dict[str, Any], console: Console) -> None:
    """Prints the table of the networks found."""
    table = Table(*_columns(summary), box=box.SIMPLE_HEAD)
    for network in summary["networks"]:
        table.add_row(*_row(summary, network))
    console.print(table)


def predictor_table(curve: list[dict[str, Any]]) -> list[str]:
    """The lines of a Markdown table: agreement of predictors with held-out records by number of training records."""
    lines = [
        "| quantised records | pairs in order, transferred / from scratch | Kendall τ | error (points) |",
        "|---|---|---|---|",
    ]
    for point in curve:
        agreements = [point["transferred"], point["from_scratch"]]
        cells = (
            " / ".join(_percent(agreement["pairwise"]) for agreement in agreements),
            " / ".join("–" if (tau := agreement["kendall"]) is None else f"{tau:.2f}" for agreement in agreements),
            " / ".join(f"{100 * agreement['error']:.1f}" for agreement in agreements),
        )
        lines.append(f"| {point['records']} | {' | '.join(cells)} |")
    return lines


def _percent(share: float | None) -> str:
    """A share as people read it; there is none where no two accuracies differ."""
    return "–" if share is None else f"{100 * share:.1f} %"


def markdown(summary: dict[str, Any]) -> str:
    """The Markdown tables of docs/apq.md: networks found, predictors and footprint (last columns of APQ, Table 2)."""
    columns = _columns(summary)
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    lines += [f"| {' | '.join(_row(summary, network))} |" for network in summary["networks"]]
    lines += ["", *predictor_table(summary["predictor"]["quantized"])]
    lines += ["", "| | seconds | CO2e (g) | cloud ($) |", "|---|---|---|---|"]
    for name, key, seconds in (
        ("once for all", "design", summary["supernet"]["seconds"]),
        ("for each device", "search", summary["search"]["seconds_with_compilation"]),
    ):
        footprint = summary["footprint"][key]
        low, high = footprint["dollars"]
        lines.append(f"| {name} | {seconds:,.0f} | {1000 * footprint['co2e_kilograms']:.2g} | {low:.2g} – {high:.2g} |")
    return "\n".join(lines) + "\n"


def write(workdir: pathlib.Path, path: pathlib.Path | None = None) -> pathlib.Path:
    """Writes the page about a finished experiment to `path`, or to `report.html` in `workdir`; returns the path."""
    summary = read_summary(workdir)
    networks, search, config = _joint(summary), summary["search"], summary["config"]
    best = max(networks, key=lambda network: network["accuracy"])
    final = summary["predictor"]["final"]
    more = (
        f"One once-for-all network of {_searched(config)}, and {_count(networks)} searched in it in "
        f"{search['seconds']:.2f} s, cut out, quantised and fine-tuned."
    )
    tiles = [
        (f"{100 * best['accuracy']:.2f} %", "test accuracy of the best", "main"),
        (f"{search['seconds']:.2f} s", f"search for {len(networks)} budget{'s' if len(networks) > 1 else ''}", ""),
        (_percent(final["pairwise"]), "pairs the predictor puts in order", ""),
        (f"{summary['supernet']['seconds']:,.0f} s", "training once for all", ""),
    ]
    path = path or workdir / "report.html"
    title = f"APQ on {config['data']['name']}"
    path.write_text(page(title, lead=_gained(summary), more=more, tiles=tiles, cards=_cards(summary)))
    return path


def _gained(summary: dict[str, Any]) -> str:
    """A sentence on the accuracies of the networks found, and on what they cost."""
    networks = _joint(summary)
    cost, unit = next(iter(summary["search"]["units"].items()))
    factor, readable = figures.readable_cost(unit)
    accuracies = _range([100 * network["accuracy"] for network in networks], ".2f")
    costs = _range([factor * network["costs"][cost] for network in networks], ".4g")
    return f"{_count(networks)}: {accuracies} % on test, for {costs} {readable} of {_words(cost)}."


def _searched_by(networks: list[dict[str, Any]], cost: str) -> list[dict[str, Any]]:
    """The networks with a budget on a cost, or all where none has."""
    return [network for network in networks if cost in network["budget"]] or networks


def _range(values: list[float], style: str) -> str:
    low, high = f"{min(values):{style}}", f"{max(values):{style}}"
    return low if low == high else f"{low} to {high}"


def _count(networks: list[dict[str, Any]]) -> str:
    return f"{len(networks)} network{'s' if len(networks) > 1 else ''}"


def _searched(config: dict[str, Any]) -> str:
    return f"the space {config['space']}" if config["space"] else f"a family of {config['model']['name']}"


def _cards(summary: dict[str, Any]) -> list[str]:
    networks, search, config = summary["networks"], summary["search"], summary["config"]
    blocks = architectures.find(config["space"], config["image_size"]).blocks if config["space"] else ()
    joint = _joint(summary)
    names = [_budget(summary, network["budget"]) for network in networks]
    if _compared(summary):
        names = [f"{apq_figures.way_of(each)} {name}" for each, name in zip(networks, names, strict=True)]
    set_names = [_budget(summary, budget) for budget in search["budgets"]]
    settings = json.dumps(config, indent=1)
    table_rows = [(_row(summary, network), _compared(summary) and network in joint) for network in networks]
    low, high = summary["footprint"]["search"]["dollars"]
    grams = 1000 * summary["footprint"]["search"]["co2e_kilograms"]
    evolution_wide = len(search["units"]) % 2 == 1  # else it would stand beside an empty half
    evolution = picture_card(
        "Evolution",
        "Best predicted accuracy, a line for each budget.",
        apq_figures.evolution(
            search["history"],
            set_names,
            config["search"]["generations"],
            width=charts.WIDE if evolution_wide else charts.WIDTH,
        ),
        wide=evolution_wide,
    )
    return [
        *(
            picture_card(
                f"Accuracy against {_words(cost)}",
                "Each point is a network searched for one budget.",
                apq_figures.front(_searched_by(joint, cost), cost, unit),
            )
            for cost, unit in search["units"].items()
        ),
        *(
            picture_card(
                f"Ways of searching, {_words(cost)}",
                "Test accuracy after fine-tuning: bits and architecture searched together, and the baselines "
                "(the paper's Table 2, Figures 5 and 6).",
                apq_figures.front_by_way(_searched_by(networks, cost), cost, unit),
            )
            for cost, unit in (search["units"].items() if _compared(summary) else ())
        ),
        picture_card(
            "Predictors",
            "On held-out quantised records (the paper's Figure 7).",
            apq_figures.predictor_curve(summary["predictor"]["quantized"]),
        ),
        *(() if evolution_wide else (evolution,)),
        *(
            [
                picture_card(
                    "Found networks",
                    "A bar per block, as high as its share of the channels that it could have; colours are bits of "
                    "pointwise weights. Rows are budgets.",
                    apq_figures.networks_by_block(networks, names, {b.name: b.channels[-1] for b in blocks}),
                    wide=True,
                )
            ]
            if blocks
            else []
        ),
        card("Results", "", html_table(_columns(summary), table_rows), wide=True),
        *((evolution,) if evolution_wide else ()),
        card(
            "Settings",
            f"A search for another device takes {search['seconds_with_compilation']:.1f} s with compilation: "
            f"{grams:.2g} g of CO2e, ${low:.1g} to ${high:.1g} of cloud computing.",
            f"<details><summary>config</summary><pre>{html.escape(settings)}</pre></details>",
            wide=True,
        ),
    ]
