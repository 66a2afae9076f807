"""The figures about networks whose architecture was searched, of any family, as SVG text in the font of the page."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from hwcost.allocation import BITS, CHANNELS, DEPTH, KERNELS
from launch.reports.charts import ACCENT, INK, LONGEST_NAME, SECOND, STYLE, WIDE, as_svg, bit_colour, blank, cut
from launch.reports.figures import ARCHITECTURE, BOTH, FORMATS, LayerNames, Run, quality_on_test, searched_in

_PART_COLOURS = {BITS: ACCENT, CHANNELS: SECOND, KERNELS: "#0d9488", DEPTH: "#6b7280"}
# Of a cost, on an axis.
_FACTORS = 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128, 256
_KERNEL_SHADES = "#eef1f5", "#c3d0e6", "#7f9fd6", "#3a66b5"  # of kernels of 1, 3, 5, 7 and more
_KERNEL_HEIGHT = -0.15  # of the squares, of the highest bar
_SEARCHED = {
    FORMATS: "formats searched",
    ARCHITECTURE: "architecture searched",
    BOTH: "formats and architecture searched",
}


def blocks_over_depth(runs: Sequence[Run], base: Mapping[str, int]) -> str:
    """Channels, kernel and format of each layer over depth, a row per run (FLIQS, Figure 6, right; A.7).

    The height of a bar is the channels that a layer puts out over those of the base; its colour and the text above it
    are the format, the square below it the size of its kernel, where there are any but of 1. A layer that a network
    lacks is left out.

    Args:
      runs: summaries, whose layers have `"channels"` and `"kernel"`.
      base: channels by path of layer; those of others are drawn as if the base had as many.
    """
    longest = max(runs, key=lambda run: len(run["layers"]))
    paths = list(dict.fromkeys(layer["path"] for run in (longest, *runs) for layer in run["layers"]))
    heights = [
        {layer["path"]: layer["channels"] / base.get(layer["path"], layer["channels"]) for layer in run["layers"]}
        for run in runs
    ]
    highest = max(1.0, *(height for of_run in heights for height in of_run.values()))
    kernels = any(_kernel(layer) > 1 for run in runs for layer in run["layers"])
    with matplotlib.rc_context(STYLE):
        names = LayerNames([{"path": path} for path in paths])
        figure = blank(width=names.width, height=(1.55 if kernels else 1.35) * len(runs) + names.height)
        rows = figure.subplots(len(runs), 1, sharex=True, squeeze=False)[:, 0]
        for axes, run, of_run in zip(rows, runs, heights, strict=True):
            _shade_blocks(axes, paths)
            for layer in run["layers"]:
                _draw_layer(axes, paths.index(layer["path"]), layer, of_run[layer["path"]], names.pitch, highest)
            axes.axhline(1, color=INK, linestyle=":", linewidth=0.8, zorder=0)
            axes.tick_params(axis="x", length=0)
            axes.axhline(0, color="#8a8f98", linewidth=0.8)
            axes.set_ylim(-0.3 * highest if kernels else 0, highest * (1.22 if names.pitch > 22 else 1.4))
            ticks = MaxNLocator(nbins=3, steps=[1, 2, 5, 10]).tick_values(0, highest)
            labels = {tick: f"{tick:g}" for tick in ticks if 0 < tick <= highest}
            labels |= {_KERNEL_HEIGHT * highest: "kernel"} if kernels else {}
            axes.set_yticks(list(labels), list(labels.values()))
            axes.spines["bottom"].set_visible(False)
            axes.grid(axis="x", visible=False)
            quality, cost = 100 * quality_on_test(run), run["relative_cost"]
            searched = f", {_SEARCHED[what]}" if (what := searched_in(run)) else ""
            axes.set_title(f"{run['name']}{searched}: {quality:.2f} % at {cost:.3f} × target", loc="left")
            axes.set_ylabel("channels / base")
        names.write(rows[-1])
        rows[-1].tick_params(axis="x", length=0)  # The line is above the kernels.
        return as_svg(figure, "Channels, kernel and number format of each layer over depth")


def _shade_blocks(axes: Axes, paths: Sequence[str]) -> None:
    """Shades every other block: neighbouring layers whose paths begin alike."""
    number, before = 0, ""
    for place, path in enumerate(paths):
        block = path.partition("/")[0]
        number, before = number + (block != before), block
        if number % 2:
            axes.axvspan(place - 0.5, place + 0.5, color="#f1f2f4", linewidth=0, zorder=0)


def _draw_layer(axes: Axes, place: int, layer: Mapping[str, Any], height: float, pitch: float, highest: float) -> None:
    """A bar for the channels in the colour of the bits, its format above, and its kernel below."""
    axes.bar(place, height, color=bit_colour(layer["bits"]), width=0.8, zorder=2)
    axes.annotate(
        layer["format"].removeprefix("int"), (place, height), xytext=(0, 1.5), textcoords="offset points",
        ha="center", va="bottom", fontsize=8, rotation=0 if pitch > 22 else 90, color=INK,
    )  # fmt: skip
    if (size := _kernel(layer)) > 1:
        shade = _KERNEL_SHADES[min(size // 2, len(_KERNEL_SHADES) - 1)]
        axes.text(
            place, _KERNEL_HEIGHT * highest, f"{size}", ha="center", va="center", fontsize=7.5,
            color="w" if size > 5 else INK,
            bbox={"boxstyle": "square,pad=0.25", "facecolor": shade, "edgecolor": "none"},
        )  # fmt: skip


def _kernel(layer: Mapping[str, Any]) -> int:
    return max(layer["kernel"], default=1)


def cost_allocation(runs: Sequence[Run], unit: str) -> str:
    """What the cost of each run over that of the base went into, as factors on a logarithmic axis (FLIQS, A.7).

    Args:
      runs: summaries with `"log_shares"` in `"base"`.
      unit: name of the base.
    """
    shares = [run["base"]["log_shares"] for run in runs]
    totals = [sum(each.values()) for each in shares]
    left = min(sum(min(value, 0.0) for value in each.values()) for each in shares)
    right = max(sum(max(value, 0.0) for value in each.values()) for each in shares)
    span = max(right - left, math.log(1.1))
    with matplotlib.rc_context(STYLE):
        figure = blank(width=WIDE, height=0.75 + 0.32 * len(runs))
        axes = figure.subplots()
        for row, (each, total) in enumerate(zip(shares, totals, strict=True)):
            reached = {1: 0.0, -1: 0.0}
            for part, value in each.items():
                sign = 1 if value >= 0 else -1
                axes.barh(row, value, left=reached[sign], color=_PART_COLOURS[part], height=0.62, zorder=2)
                if abs(value) > 0.07 * span:
                    text = f"× {math.exp(value):.2f}"
                    middle = reached[sign] + value / 2
                    axes.text(middle, row, text, ha="center", va="center", fontsize=8, color="w", zorder=3)
                reached[sign] += value
            axes.plot([total] * 2, [row - 0.42, row + 0.42], color=INK, linewidth=2, zorder=4)
            axes.annotate(
                f"× {math.exp(total):.2f}", (reached[1], row), xytext=(6, 0), textcoords="offset points",
                va="center", fontsize=8, color=INK,
            )  # fmt: skip
        room = 0.1 * span
        axes.set_xlim(left - 0.02 * span, right + room)
        ticks = [factor for factor in _FACTORS if left - 0.02 * span <= math.log(factor) <= right + room]
        axes.set_xticks(np.log(ticks), [f"{tick:g}" for tick in ticks])
        axes.axvline(0, color="#8a8f98", linewidth=0.8)
        axes.set_yticks(range(len(runs)), [cut(run["name"], LONGEST_NAME) for run in runs])
        axes.set_ylim(len(runs) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(f"× the cost of {unit} (log scale)")
        parts = [part for part in _PART_COLOURS if any(part in each for each in shares)]
        handles = [Patch(color=_PART_COLOURS[part], label=part) for part in parts]
        axes.legend(handles=handles, ncols=4, loc="lower left", bbox_to_anchor=(0, 1), handlelength=1, columnspacing=1)
        return as_svg(figure, "What the cost of each network went into, beside the base")
