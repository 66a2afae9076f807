"""The figures of the APQ report, as SVG text."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.patches import Patch, Rectangle

from launch.apq.search_ways import FROM_SCRATCH, JOINT
from launch.reports.charts import (
    ACCENT,
    INK,
    SECOND,
    STYLE,
    WIDE,
    WIDTH,
    as_svg,
    bit_colour,
    blank,
    ink_on,
    legend_above,
    spread,
)
from launch.reports.figures import readable_cost, short_names

Network = Mapping[str, Any]
SEQUENTIAL = "sequential"  # decisions of one kind after the other (APQ, Eq. 1–3)
_VIOLET = "#7c3aed"
_SHORT_LEGEND = 3  # lines whose names fit above the axes


def way_of(network: Network) -> str:
    """The way in which a network was searched; those of earlier versions were searched jointly."""
    return network.get("way", JOINT)


def way_in_words(way: str) -> str:
    """A way of searching, as people are told it."""
    words = {JOINT: "all together", FROM_SCRATCH: "without transfer", SEQUENTIAL: "one after the other"}
    return words.get(way, f"{way} in all blocks")


def front(networks: Sequence[Network], cost: str, unit: str) -> str:
    """Accuracy of the networks found against a cost: predicted, and measured after fine-tuning."""
    return _accuracy_against(
        _axis_of(cost, unit),
        {
            label: _points(networks, cost, unit, key)
            for label, key in (
                ("predicted", "predicted_accuracy"),
                ("validation, fine-tuned", "validation_accuracy"),
                ("test, fine-tuned", "accuracy"),
            )
        },
    )


def front_by_way(networks: Sequence[Network], cost: str, unit: str) -> str:
    """Test accuracy against a cost, a line for each way of searching (APQ, Figure 5, and Figure 6, right)."""
    ways = dict.fromkeys(map(way_of, networks))
    return _accuracy_against(
        _axis_of(cost, unit),
        {
            way_in_words(way): _points([each for each in networks if way_of(each) == way], cost, unit, "accuracy")
            for way in ways
        },
        first=ACCENT,
    )


def _axis_of(cost: str, unit: str) -> str:
    words, readable = cost.replace("_", " "), readable_cost(unit)[1]
    return readable if unit == words else f"{words} ({readable})"


def _points(networks: Sequence[Network], cost: str, unit: str, key: str) -> list[tuple[float, float]]:
    factor = readable_cost(unit)[0]
    return [(network["costs"][cost] * factor, network[key]) for network in networks]


def _accuracy_against(cost: str, lines: Mapping[str, Sequence[tuple[float, float]]], *, first: str = SECOND) -> str:
    """Lines through points (cost, accuracy), in ascending order of cost; `first` is the colour of the first of them."""
    colours = dict.fromkeys((first, SECOND, ACCENT, INK, bit_colour(8), _VIOLET, *map(bit_colour, (6, 2))))
    with matplotlib.rc_context(STYLE):
        figure = blank()
        axes = figure.subplots()
        for (label, points), colour, marker in zip(lines.items(), colours, itertools.cycle("os^Dv"), strict=False):
            costs, accuracies = zip(*sorted(points), strict=True)
            axes.plot(costs, 100 * np.asarray(accuracies), color=colour, marker=marker, markersize=4, label=label)
        axes.locator_params(axis="x", nbins=5)
        axes.set_xlabel(cost)
        axes.set_ylabel("accuracy (%)")
        if len(lines) <= _SHORT_LEGEND:
            legend_above(axes)
        else:
            axes.legend(fontsize=8, loc="best")
        return as_svg(figure, "Accuracy of the found networks against cost")


def predictor_curve(curve: Sequence[Mapping[str, Any]]) -> str:
    """Pairwise accuracy, mean and range, against the number of quantised records (APQ, Figure 7)."""
    with matplotlib.rc_context(STYLE):
        figure = blank()
        axes = figure.subplots()
        counts = [point["records"] for point in curve]
        for key, label, colour in (
            ("transferred", "transferred from float", ACCENT),
            ("from_scratch", "from scratch", SECOND),
        ):
            pairwise = 100 * np.asarray([point[key]["pairwise_of_each"] for point in curve], float)
            axes.fill_between(counts, pairwise.min(axis=1), pairwise.max(axis=1), color=colour, alpha=0.15, linewidth=0)
            axes.plot(counts, pairwise.mean(axis=1), color=colour, marker="o", ms=4, label=label)
        axes.set_xscale("log")
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.minorticks_off()
        axes.set_xlabel("quantised records")
        axes.set_ylabel("pairwise accuracy (%)")
        legend_above(axes)
        return as_svg(figure, "Pairwise accuracy of the predictors against the number of records")


def evolution(
    history: Sequence[Sequence[float]], names: Sequence[str], generations: int, *, width: float = WIDTH
) -> str:
    """Best predicted accuracy over the generations, one line per set of budgets."""
    with matplotlib.rc_context(STYLE):
        figure = blank(width=width)
        axes = figure.subplots()
        shades = np.linspace(1.0, 0.35, len(history))[::-1]  # the last is the strongest, also where it is the only one
        ends, accuracies = [100 * line[-1] for line in history], 100 * np.asarray(history)
        heights = spread(ends, 0.05 * max(float(np.ptp(accuracies)), 0.1))
        for line, name, shade, height in zip(accuracies, names, shades, heights, strict=True):
            axes.plot(np.linspace(0, generations, len(line)), line, color=ACCENT, alpha=shade)
            axes.text(1.02 * generations, height, name, va="center", fontsize=8)
        axes.set_xlabel("generation")
        axes.set_ylabel("best predicted accuracy (%)")
        return as_svg(figure, "Best predicted accuracy over the generations of evolution")


def networks_by_block(networks: Sequence[Network], names: Sequence[str], most_channels: Mapping[str, int]) -> str:
    """A row per network with a bar per block; skipped blocks have none.

    The height of a bar is the number of expanded channels relative to the largest, its colour stands for the bits of
    the pointwise weights, and its label is the kernel size.
    """
    blocks = list(most_channels)
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        figure = blank(width=WIDE, height=0.62 * len(networks) + 0.7)
        axes = figure.subplots()
        text = {"ha": "center", "va": "bottom", "fontsize": 8 if len(blocks) < 25 else 7}
        bits_shown = set()
        for row, network in enumerate(networks):
            for column, block in enumerate(blocks):
                shape = block_shape(network["choices"], block)
                if shape is None:
                    axes.plot([column - 0.3, column + 0.3], [row, row], color="#c9ced6", linewidth=1)
                    continue
                kernel, channels, bits = shape
                bits_shown.add(bits)
                height = 0.84 * channels / most_channels[block]
                axes.add_patch(Rectangle((column - 0.38, row), 0.76, -height, color=bit_colour(bits), linewidth=0))
                axes.text(column, row - 0.06, f"{kernel}×{kernel}", color=ink_on(bits), **text)
        axes.set_xlim(-0.6, len(blocks) - 0.4)
        axes.set_ylim(len(networks) - 0.85, -1.0)
        axes.set_xticks(range(len(blocks)), [name.removeprefix("s") for name in short_names(blocks)])
        axes.set_yticks(range(len(networks)), names)
        axes.tick_params(length=0)
        axes.spines[["left", "bottom"]].set_visible(False)
        handles = [Patch(color=bit_colour(bits), label=f"{bits} bits") for bits in sorted(bits_shown)]
        axes.legend(handles=handles, fontsize=8, ncols=len(handles), loc="lower left", bbox_to_anchor=(0, 1))
        return as_svg(figure, "Kernel, channels and bits of each block of the found networks")


def block_shape(choices: Mapping[str, str], block: str) -> tuple[int, int, int] | None:
    """Kernel size, expanded channels and bits of the pointwise weights of a block; None if it is skipped."""
    stage, _, place = block.partition("_block")
    if int(choices.get(f"{stage}.depth", place)) < int(place):
        return None
    kernel, channels = int(choices[f"{block}.kernel"]), int(choices[f"{block}.channels"])
    return kernel, channels, int(choices[f"{block}.pointwise_weights"].removeprefix("int"))
