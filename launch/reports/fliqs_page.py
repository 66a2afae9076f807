"""The report page of one or several FLIQS runs: one self-contained HTML file."""

import html
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

from flax import traverse_util
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from aqt_like.formats import parse_layer_format
from aqt_like.frozen_network import FrozenNetwork
from hwcost.genome_file import decides_format
from hwcost.workload import Outside, remark
from launch.reports import architecture_cards, charts, export_card, figures
from launch.reports.figures import quality_on_test
from launch.reports.page import card, html_table, page, picture_card
from launch.reports.recorded_runs import (
    RecordedRun,
    gain,
    read_runs,
    runs_drawn_together,
    runs_of_first_cost,
    uniform_gap,
)
from launch.training import progress
from launch.training.experiment import SEARCHED
from launch.training.run_directory import METRICS, NETWORK

_HEATMAP_LINES = 240


def _columns(runs: Sequence[RecordedRun]) -> tuple[str, ...]:
    _, unit = figures.readable_cost(runs[0].summary["cost_unit"])
    return ("network", *_qualities(runs), unit, "cost / target", "bits per MAC", "bits of each layer")


def _qualities(runs: Sequence[RecordedRun]) -> tuple[str, ...]:
    """The qualities of the runs, each once; that of the first run first."""
    return tuple(dict.fromkeys(run.summary["quality"] for run in runs))


def _row(run: RecordedRun, runs: Sequence[RecordedRun]) -> tuple[str, ...]:
    s = run.summary
    factor, unit = figures.readable_cost(s["cost_unit"])
    cost = s["cost"] * factor
    own_unit = "" if run in runs_of_first_cost(runs) else f" {unit}"
    return (
        s["name"],
        *(f"{100 * quality_on_test(s):.2f} %" if s["quality"] == name else "" for name in _qualities(runs)),
        f"{cost:,.{1 if cost >= 0.5 else 4}f}{own_unit}",
        f"{s['relative_cost']:.3f}",
        f"{run.mean_bits:.2f}",
        run.bits_over_depth,
    )


def rows(runs: Sequence[RecordedRun]) -> list[dict[str, str]]:
    """The table that compares `runs`: a dictionary by column name per run."""
    return [dict(zip(_columns(runs), _row(run, runs), strict=True)) for run in runs]


def print_table(runs: Sequence[RecordedRun], console: Console) -> None:
    """Prints the table that compares `runs`."""
    table = Table(box=box.SIMPLE_HEAD)
    columns = _columns(runs)
    for i, column in enumerate(columns):
        last = i == len(columns) - 1
        table.add_column(Text(column), justify="left" if i == 0 or last else "right", overflow="fold", no_wrap=not last)
    for run in runs:
        table.add_row(*map(Text, _row(run, runs)), style="bold" if run.searched else None)
    # Where it goes to a file, columns of a narrow terminal would be cut.
    wide = console if console.is_terminal else Console(file=console.file, width=max(console.width, 120), markup=False)
    wide.print(table)


def write(directories: Sequence[pathlib.Path], path: pathlib.Path) -> pathlib.Path:
    """Writes the page about the runs in `directories`, with the training curves of the first; returns `path`."""
    runs = read_runs(directories)
    main = runs[0]
    summary = main.summary
    lines = progress.read_metrics(main.directory / METRICS)
    factor, unit = figures.readable_cost(summary["cost_unit"])
    name, data_name = summary["quality"], summary["config"]["data"]["name"]
    sentence = gain(runs) or f"{summary['name']}: {100 * quality_on_test(summary):.2f} % on test."
    more = (
        f"It costs {summary['relative_cost']:.3f} × the target of {_amount(summary['target'] * factor)} {unit}."
        + "".join(_keeping(budget) for budget in summary["budgets"][1:])
    )
    tiles = [
        (f"{100 * quality_on_test(summary):.2f} %", f"test {name}", "main"),
        (f"{summary['relative_cost']:.3f}", "cost / target", ""),
        (f"{main.mean_bits:.2f}", "bits per MAC", ""),
        (f"{summary['seconds']:,.0f} s", f"training, {summary['steps_per_second']:.1f} steps/s", ""),
    ]
    if main.searched and (gap := uniform_gap(runs)):
        more += f" Between {gap.cheapest['name']} and {gap.dearest['name']} lie {gap.points:.2f} points"
        if (share := gap.recovered(summary)) is None:
            more += ", which is within the noise of a single run."
        else:
            more += f", of which it recovers {100 * share:.0f} %."
            tiles.insert(1, (f"{100 * share:.0f} %", f"of the {name} gap recovered", ""))
    title = f"{summary['name']} on {data_name}"
    path.write_text(page(title, lead=sentence, more=more, tiles=tiles, cards=_cards(runs, lines)))
    return path


def _keeping(budget: dict[str, Any]) -> str:
    factor, unit = figures.readable_cost(budget["unit"])
    cost, target = (_amount(budget[key] * factor) for key in ("cost", "target"))
    return f" Of {budget['name'].replace('_', ' ')}, {cost} {unit} where {target} were allowed."


def _amount(value: float) -> str:
    return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def _cards(runs: Sequence[RecordedRun], lines: Sequence[dict[str, Any]]) -> list[str]:
    main = runs[0].summary
    together = [run.summary for run in runs_drawn_together(runs)]
    searched = [run.summary for run in runs if run.searched] or [main]
    same_layers = [summary for summary in searched if _paths(summary) == _paths(searched[0])]
    settings = json.dumps({key: main[key] for key in ("config", "versions", "device", "seed")}, indent=1)
    training = _training_cards(main, lines) if lines else []
    return [
        picture_card(
            f"{_capital(main['quality'])} against cost",
            _searched(together),
            figures.pareto(together, width=charts.WIDTH if training else charts.WIDE),
            wide=not training,
        ),
        *training[:1],  # of the same height, beside it
        picture_card(
            "Format of each layer",
            "From input to output; the warmer, the fewer bits.",
            figures.formats_over_depth(same_layers),
            wide=True,
        ),
        *architecture_cards.cards(together),
        *_scores_card(main),
        picture_card("Where the cost is", _shares_of(main), figures.cost_shares(main), wide=True),
        *_file_card(runs[0]),
        *export_card.cards(runs[0].directory),
        card("Results", "", _table(runs), wide=True),
        *training[1:],
        card(
            "Settings",
            _footprint(main),
            f"<details><summary>config and versions</summary><pre>{html.escape(settings)}</pre></details>",
            wide=True,
        ),
    ]


def _searched(runs: Sequence[dict[str, Any]]) -> str:
    if any(figures.searched_in(run) in (figures.ARCHITECTURE, figures.BOTH) for run in runs):
        return "The legend says what was searched; dots have one format in all layers and the sizes of the base."
    return "Stars are searched, dots have one format in all layers."


def _shares_of(summary: dict[str, Any]) -> str:
    name = summary["cost_name"].replace("_", " ")
    text = f"Each layer's share of {name}" + (", and in grey of bit operations." if name != "bit operations" else ".")
    estimates = [layer["path"] for layer in summary["layers"] if layer["cost_is_estimate"]]
    text += f" Interpolated, not measured: {', '.join(estimates)}." if estimates else ""
    places = summary.get("outside", {}).get("places", ())  # Summaries of earlier versions have none.
    line = remark(sum(layer["macs"] for layer in summary["layers"]), [Outside(**place) for place in places])
    return text + (f" {line}." if line else "")


def _file_card(run: RecordedRun) -> list[str]:
    """A card about the file of the network; none if a run of an earlier version left none.

    Raises:
      ValueError: the file is not that of the run.
    """
    path = run.directory / NETWORK
    if not path.exists():
        return []
    network = FrozenNetwork.load(path)
    if {name: layer.format for name, layer in network.layers.items()} != _formats(run.summary):
        raise ValueError(f"{path} has layers or formats that its summary has not: it is of another run")
    size, whole = path.stat().st_size, network.float32_bytes()
    stored = sum(network.sizes().values())
    text = (
        f"{path.name} has {size:,} bytes: {stored:,} of the network, {stored / whole:.3f} × the {whole:,} of float32, "
        f"and {size - stored:,} of its description, which grow with the layers, not the weights. A segment is a layer, "
        f"from input to output. Not quantised, in bytes: {_not_quantized(network)}."
    )
    return [picture_card("The network as a file", text, figures.storage(network), wide=True)]


def _not_quantized(network: FrozenNetwork) -> str:
    """The variables that are stored as they are, with their bytes: kernels and large ones by path, others by name."""
    flat: dict[str, Any] = traverse_util.flatten_dict(network.variables, sep="/")
    sizes: dict[str, int] = {}
    for path, values in flat.items():
        collection, _, place = path.partition("/")
        large = values.ndim > 1 and collection == "params"
        leaf = path.rpartition("/")[2]
        name = place if large else {"scale": "scale of normalisation"}.get(leaf, leaf)
        sizes[name] = sizes.get(name, 0) + values.nbytes
    in_float = [path for path, layer in network.layers.items() if layer.input_format == "fp32"]
    told = ", ".join(f"{name} {size:,}" for name, size in sorted(sizes.items(), key=lambda entry: -entry[1])[:8])
    return told + (f"; inputs of {', '.join(in_float)}" if in_float else "")


def _footprint(summary: dict[str, Any]) -> str:
    """A sentence about the energy, emissions and price of training."""
    footprint, rates = summary["footprint"], summary["config"]["footprint"]
    low, high = footprint["dollars"]
    return (
        f"Training drew {1000 * footprint['kilowatt_hours']:,.3g} Wh at {rates['watts']:g} W, which stand for "
        f"{1000 * footprint['co2e_kilograms']:,.3g} g of CO2e and ${low:,.2g} to ${high:,.2g} of cloud computing."
    )


def _training_cards(summary: dict[str, Any], lines: Sequence[dict[str, Any]]) -> list[str]:
    """Cards with the curves of one run over its training steps, of the metrics that all of its lines have."""
    settings = summary["config"]["controller"]["reinforce"]
    timed = [line | {"milliseconds": 1000 / line["steps_per_second"]} for line in lines if line.get("steps_per_second")]
    quality = summary["quality"]
    cards = _curve_card(
        f"{_capital(quality)} while training",
        "On training batches" + (", and on validation batches." if _all_have(lines, "valid_quality") else "."),
        lines,
        {"train_quality": "train", "valid_quality": "validation"},
        quality,
    )
    if summary["policy"] != "fixed":  # A fixed genome has the same at each step.
        cost, reward = (
            "cost / target",
            f"The {settings['reward'].replace('_', ' ')} reward with γ = {settings['gamma']:g}.",
        )
        drawn = "Of the networks drawn at each step; dotted: the target."
        cards += _curve_card("Sampled cost", drawn, lines, {"relative_cost": cost}, cost, reference=1.0)
        if _all_have(lines, "reward"):
            cards += _curve_card("Reward", reward, lines, {"reward": "reward"}, "reward")
        else:
            cards += _curve_card("Loss", "Of training batches.", lines, {"loss": "loss"}, "loss")
        entropy = "A sum over layers." + _uniform_until(summary, lines) + _frozen_from(summary, lines)
        cards += _curve_card("Entropy of the policy", entropy, lines, {"entropy": "entropy"}, "entropy (nats)")
    cards += _curve_card("Step time", "", timed, {"milliseconds": "step time"}, "step time (ms)")
    if summary["kind"] == SEARCHED and _all_have(lines, "policy"):
        decisions = [
            decision
            | {"bits": [parse_layer_format(o).bits for o in decision["options"] if decides_format(decision["name"])]}
            for decision in summary["decisions"]
        ]
        picture = figures.policy_over_time(lines[:: max(len(lines) // _HEATMAP_LINES, 1)], decisions)
        explanation = "A band per decision, a row per option in it: the stronger, the more probable."
        cards.append(picture_card("The policy over time", explanation, picture, wide=True))
    return cards


def _curve_card(
    heading: str,
    text: str,
    lines: Sequence[dict[str, Any]],
    series: dict[str, str],
    ylabel: str,
    *,
    reference: float | None = None,
) -> list[str]:
    """A card with the metrics of `series`, by their labels, that all lines have; none if there is none."""
    known = {name: label for name, label in series.items() if _all_have(lines, name)}
    return [picture_card(heading, text, figures.curve(lines, known, ylabel, reference=reference))] if known else []


def _all_have(lines: Sequence[dict[str, Any]], name: str) -> bool:
    return bool(lines) and all(name in line for line in lines)


def _scores_card(summary: dict[str, Any]) -> list[str]:
    """A card with the scores of a controller; none if a run of an earlier version stored none."""
    if "scores" not in summary:
        return []
    text = (
        "How far the controller holds a format to be behind the best of its layer, in percent of the largest distance "
        "there is. Framed: chosen."
    )
    numbers = [n for n, each in enumerate(summary["decisions"]) if decides_format(each["name"])]
    decisions = [summary["decisions"][number] for number in numbers]
    scores, genome = ([summary[key][number] for number in numbers] for key in ("scores", "genome"))
    picture = figures.scores(scores, decisions, genome)
    return [picture_card("Scores of layers and formats", text, picture, wide=True)]


def _uniform_until(summary: dict[str, Any], lines: Sequence[dict[str, Any]]) -> str:
    if summary["policy"] != "reinforce":
        return ""
    warmup = round(summary["config"]["controller"]["reinforce"]["warmup_fraction"] * lines[-1]["step"])
    return f" Formats are drawn uniformly for the first {warmup} steps."


def _frozen_from(summary: dict[str, Any], lines: Sequence[dict[str, Any]]) -> str:
    step = summary.get("frozen_from_step", math.inf)  # Summaries of earlier versions have none.
    return f" One genome is trained from step {step} on." if step < lines[-1]["step"] else ""


def _capital(name: str) -> str:
    return name[:1].upper() + name[1:]


def _formats(summary: dict[str, Any]) -> dict[str, str]:
    return {layer["path"]: layer["format"] for layer in summary["layers"]}


def _paths(summary: dict[str, Any]) -> list[str]:
    return [layer["path"] for layer in summary["layers"]]


def _table(runs: Sequence[RecordedRun]) -> str:
    return html_table(_columns(runs), [(_row(run, runs), run.searched) for run in runs])
