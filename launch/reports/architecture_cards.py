"""Cards of the report about networks whose architecture was searched, of any family."""

import math
from collections.abc import Sequence
from typing import Any

from launch.reports import architecture_figures
from launch.reports.figures import ARCHITECTURE, BOTH, Run, is_uniform, searched_in
from launch.reports.page import card, html_table, picture_card

_LAYERS = {"channels": "whose channels are searched", "kernels": "whose kernels are searched"}


def cards(runs: Sequence[Run]) -> list[str]:
    """The cards about `runs`, summaries that one picture of quality against cost has; none without an architecture.

    Summaries of earlier versions do not say what is drawn here.
    """
    told = [run for run in runs if "base" in run]
    if not any(searched_in(run) in (ARCHITECTURE, BOTH) for run in told):
        return []
    return [_blocks_card(told), *_allocation_cards(told)]


def _blocks_card(runs: Sequence[Run]) -> str:
    """Networks of the first run's model, block by block; uniform ones only if they are all that there is."""
    model = runs[0]["config"]["model"]["name"]
    alike = [run for run in runs if run["config"]["model"]["name"] == model]
    drawn = [run for run in alike if not is_uniform(run)] or alike
    base = {layer["path"]: layer["channels"] for layer in runs[0]["base"]["layers"]}
    picture = architecture_figures.blocks_over_depth(drawn, base)
    text = (
        "From input to output. Height: the channels (units, ranks) that a layer puts out, over those of the network "
        "that the search began with. Colour and text: its format. Below, in squares: the size of its kernel, where it "
        "is more than 1."
    )
    return picture_card("Blocks: channels, formats, kernels", text, picture, wide=True)


def _allocation_cards(runs: Sequence[Run]) -> list[str]:
    """What the cost over that of the base went into, of the runs with the base of the first."""
    own = runs[0]["base"]
    alike = [run for run in runs if (run["base"]["format"], run["base"]["cost"]) == (own["format"], own["cost"])]
    heading = "What the cost went into"
    if own["log_shares"] is None:
        return [card(heading, f"Not known: {own['why_none']}.", "", wide=True)]
    drawn = [run for run in alike if run["base"]["log_shares"] is not None]
    text = (
        f"{allocation_sentence(runs[0])} Factors multiply: each is a share of the logarithm, the mean over all orders "
        f"in which parts can change. {correlation_sentence(runs[0])}"
    )
    picture = architecture_figures.cost_allocation(drawn, f"the base in {own['format']}")
    searched = [run for run in drawn if searched_in(run) in (ARCHITECTURE, BOTH)]
    if len(searched) < 2:
        return [picture_card(heading, text, picture, wide=True)]
    columns = ("rank correlation of bits with", *_LAYERS)
    rows = [((run["name"], *(_told(run, part) for part in _LAYERS)), run is runs[0]) for run in searched]
    correlations = "Over the layers of which these are searched (Spearman); undefined where all have the same."
    return [
        picture_card(heading, text, picture, wide=True),
        card("Bits, channels and kernels", correlations, html_table(columns, rows), wide=True),
    ]


def allocation_sentence(run: Run) -> str:
    """What the cost of a run over that of its base went into, as factors."""
    shares: dict[str, float] = run["base"]["log_shares"]
    factors = [f"× {math.exp(share):.2f} by {part}" for part, share in shares.items()]
    listed = factors[0] if len(factors) == 1 else f"{', '.join(factors[:-1])} and {factors[-1]}"
    total = math.exp(sum(shares.values()))
    return f"{run['name']} costs {total:.2f} × the base network in {run['base']['format']}: {listed}."


def correlation_sentence(run: Run) -> str:
    """The rank correlations of a run's bits with its channels and kernels; empty where neither is searched."""
    found: dict[str, Any] = run["rank_correlations"]
    sentences = [
        f"Over the {each['layers']} layers {_LAYERS[part]}, the rank correlation of bits and {part} is "
        f"{_told(run, part)}."
        for part, each in found.items()
    ]
    return " ".join(sentences)


def _told(run: Run, part: str) -> str:
    each = run["rank_correlations"].get(part)
    if each is None:
        return "not searched"
    return "undefined" if each["rho"] is None else f"{each['rho']:+.2f}".replace("-", "−")
