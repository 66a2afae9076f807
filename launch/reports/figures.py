"""The figures of reports, as SVG text in the font of the page."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullFormatter

from launch.training.experiment import UNIFORM

WIDTH = 5.0  # inches; narrow, so that text stays legible on a phone

STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",  # the same run gives the same file
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a8f98",
    "axes.labelcolor": "#3b4048",
    "axes.titlesize": 9,
    "axes.grid": True,
    "grid.color": "#e6e8eb",
    "axes.axisbelow": True,
    "xtick.color": "#5c626b",
    "ytick.color": "#5c626b",
    "legend.frameon": False,
    "lines.linewidth": 1.4,
}
INK, ACCENT, SECOND = "#3b4048", "#c2410c", "#2563eb"

_LINE_COLOURS = (ACCENT, SECOND, INK)

# Warm for few bits, cool for many; the lightness differs as well, for readers with colour vision deficiency.
_BIT_COLOURS = {
    2: "#7f0000",
    3: "#a50f15",
    4: "#d94801",
    5: "#f16913",
    6: "#fdae6b",
    7: "#a6bddb",
    8: "#3690c0",
    16: "#034e7b",
}

Run = Mapping[str, Any]


def bit_colour(bits: int) -> str:
    """The colour of formats with this number of bits."""
    return _BIT_COLOURS[min(_BIT_COLOURS, key=lambda known: abs(known - bits))]


def as_svg(figure: Figure, description: str) -> str:
    """Inline SVG that scales to the width of its column, with `description` as text for screen readers."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    opening = re.search(r"<svg [^>]*>", text)
    assert opening is not None
    scalable = re.sub(r' (width|height)="[^"]*"', "", opening[0]).replace(
        "<svg", f'<svg role="img" aria-label="{description}"'
    )
    return scalable + text[opening.end() :]


def readable_cost(unit: str) -> tuple[float, str]:
    """The factor from a unit to a more readable unit, and the name of that unit."""
    return {"bit operations": (1e-6, "Mbit ops"), "bytes": (1e-3, "KB")}.get(unit, (1.0, unit))


def quality_on_test(run: Run) -> float:
    """The quality of a run on the test split, in the measure that its summary names."""
    return run[run["quality"]]


def pareto(runs: Sequence[Run]) -> str:
    """Test quality against cost, with the Pareto front of the uniform baselines as a line (FLIQS, Figure 5)."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.6))
        axes = figure.subplots()
        uniform = sorted((r for r in runs if is_uniform(r)), key=lambda r: (r["cost"], -quality_on_test(r)))
        best = np.maximum.accumulate([quality_on_test(r) for r in uniform]) if uniform else []
        front = [r for r, top in zip(uniform, best, strict=True) if quality_on_test(r) >= top]
        factor, unit = readable_cost(runs[0]["cost_unit"])
        axes.plot(
            [r["cost"] * factor for r in front], [100 * quality_on_test(r) for r in front], color="#b6bbc3", zorder=1
        )
        searched = [r for r in runs if not is_uniform(r)]
        qualities = [100 * quality_on_test(r) for r in runs]
        gap = 0.055 * max(max(qualities) - min(qualities), 0.5)
        for members, colour, marker, size, side in (
            (uniform, INK, "o", 34, -1),
            (searched, ACCENT, "*", 70, 1),
        ):
            heights = spread([100 * quality_on_test(r) for r in members], gap)
            for run, height in zip(members, heights, strict=True):
                x, y = run["cost"] * factor, 100 * quality_on_test(run)
                axes.scatter(x, y, s=size, color=colour, marker=marker, zorder=3)
                axes.annotate(
                    run["name"].removeprefix("uniform "),
                    (x, y),
                    xytext=(x * 1.12**side, height),
                    ha="left" if side > 0 else "right",
                    va="center",
                    color=colour,
                    fontsize=8,
                )
        for target in sorted({r["target"] for r in searched}):
            axes.axvline(target * factor, color=ACCENT, linestyle=":", linewidth=1, zorder=0)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 10 else f"{value:.2g}")
        costs = [r["cost"] * factor for r in runs]
        axes.set_xlim(min(costs) / 2.2, max(costs) * 1.5)  # room for labels to the left
        axes.margins(y=0.1)
        axes.set_xlabel(f"cost ({unit}, log scale; dotted: target)")
        axes.set_ylabel(f"test {runs[0]['quality']} (%)")
        return as_svg(figure, f"Test {runs[0]['quality']} against cost of the searched and the uniform networks")


def cost_shares(run: Run) -> str:
    """Shares of the layers in the cost of a run, and in its bit operations (FLIQS, Eq. 1) if that is another cost."""
    with matplotlib.rc_context(STYLE):
        layers = run["layers"]
        shares = {run["cost_name"]: [layer["cost"] for layer in layers]}
        if run["cost_unit"] != "bit operations":
            shares["bit operations"] = [layer["bits"] ** 2 * layer["macs"] for layer in layers]
        figure = Figure(figsize=(WIDTH, 3.6))
        axes = figure.subplots()
        places, width = np.arange(len(layers)), 0.84 / len(shares)
        for i, (name, costs) in enumerate(shares.items()):
            colours = [bit_colour(layer["bits"]) for layer in layers] if i == 0 else "#b6bbc3"
            heights = 100 * np.asarray(costs) / sum(costs)
            axes.bar(places + (i - (len(shares) - 1) / 2) * width, heights, width, color=colours, label=name)
        axes.set_ylabel("share (%; grey: bit operations)" if len(shares) > 1 else "share (%)")
        axes.grid(axis="x", visible=False)
        _name_layers(axes, layers)
        return as_svg(figure, "Share of each layer in the cost of the network")


def _name_layers(axes: Axes, layers: Sequence[dict[str, Any]]) -> None:
    """Labels the x axis with the shortened paths of layers."""
    labels = [layer["path"].replace("_block", ".").replace("stage", "s") for layer in layers]
    axes.set_xticks(range(len(labels)), labels, rotation=60, ha="right", rotation_mode="anchor", fontsize=7.5)


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Heights of labels for points at `heights`: close to them, in the same order, at least `gap` apart."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    placed = [heights[i] for i in order]
    for _ in range(100):  # neighbours that overlap are moved apart, until none do
        for k in range(1, len(placed)):
            overlap = gap - (placed[k] - placed[k - 1])
            if overlap > 0:
                placed[k - 1] -= overlap / 2
                placed[k] += overlap / 2
    result = [0.0] * len(heights)
    for i, height in zip(order, placed, strict=True):
        result[i] = height
    return result


def formats_over_depth(runs: Sequence[Run]) -> str:
    """The formats of the layers over depth, one row of bars per run (FLIQS, Figures 3 and 7)."""
    with matplotlib.rc_context(STYLE):
        count = len(runs[0]["layers"])
        figure = Figure(figsize=(max(WIDTH, 0.16 * count), 0.9 * len(runs) + 1.3))
        rows = figure.subplots(len(runs), 1, sharex=True, squeeze=False)[:, 0]
        for axes, run in zip(rows, runs, strict=True):
            bits = [layer["bits"] for layer in run["layers"]]
            axes.bar(range(count), bits, color=[bit_colour(b) for b in bits], width=0.86)
            for i, layer in enumerate(run["layers"]):
                axes.annotate(
                    layer["format"].removeprefix("int"), (i, bits[i]), xytext=(0, 1.5), textcoords="offset points",
                    ha="center", fontsize=7 if count <= 24 else 5, color=INK,
                )  # fmt: skip
            axes.set_ylim(0, 19)
            axes.set_yticks([4, 8, 16])
            axes.grid(axis="x", visible=False)
            axes.set_title(
                f"{run['name']}: {100 * quality_on_test(run):.2f} % at {run['relative_cost']:.3f} × target", loc="left"
            )
            axes.set_ylabel("bits")
        _name_layers(rows[-1], runs[0]["layers"])
        figure.subplots_adjust(hspace=0.55)
        return as_svg(figure, "Number format of each layer over depth")


def curve(lines: Sequence[Run], series: Mapping[str, str], ylabel: str, *, reference: float | None = None) -> str:
    """Metrics over training steps; `series` maps names of metrics to labels."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.3))
        axes = figure.subplots()
        steps = [line["step"] for line in lines]
        for (name, label), colour in zip(series.items(), (SECOND, ACCENT), strict=False):
            axes.plot(steps, [line[name] for line in lines], color=colour, label=label)
        if reference is not None:
            axes.axhline(reference, color=INK, linestyle=":", linewidth=1)
        if len(series) > 1:
            axes.legend(loc="lower right")
        axes.set_xlabel("step")
        axes.set_ylabel(ylabel)
        return as_svg(figure, f"{ylabel} over training steps")


def lines(
    series: Mapping[str, tuple[Sequence[Any], Sequence[float]]], *, xlabel: str, ylabel: str, log: bool = False
) -> str:
    """Labelled lines (x, y) with different colours, dashes and markers."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.0))
        axes = figure.subplots()
        styles = zip(_LINE_COLOURS * 2, ["-"] * 3 + ["--"] * 3, "os^Dvx", strict=True)
        for (name, (x, y)), (colour, dash, marker) in zip(series.items(), styles, strict=False):
            axes.plot(x, y, dash, color=colour, marker=marker, markersize=4, label=name)
        if log:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8)
        return as_svg(figure, f"{ylabel} over {xlabel}")


def scatter(
    series: Mapping[str, tuple[np.ndarray, np.ndarray]], *, xlabel: str, ylabel: str, diagonal: bool = False
) -> str:
    """Scatter plots of series (x, y), one panel each; `diagonal` adds the line x = y."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.6))
        panels = figure.subplots(1, len(series), squeeze=False)[0]
        for axes, (name, (x, y)) in zip(panels, series.items(), strict=True):
            few = len(x) < 100
            axes.scatter(x, y, s=14 if few else 3, color=SECOND, alpha=0.8 if few else 0.35, linewidths=0)
            if diagonal:
                axes.axline((x.min(), x.min()), slope=1, color=INK, linewidth=1, zorder=0)
            axes.set_title(name, loc="left")
            axes.set_xlabel(xlabel)
        panels[0].set_ylabel(ylabel)
        figure.subplots_adjust(wspace=0.3)
        return as_svg(figure, f"{ylabel} over {xlabel}")


def roofline(
    points: Mapping[str, tuple[np.ndarray, np.ndarray]], *, peaks: Mapping[str, float], bytes_per_second: float
) -> str:
    """A roofline plot of layers: MACs per second against MACs per byte, with points and a roofline for each name."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 3.4))
        axes = figure.subplots()
        span = np.geomspace(min(x.min() for x, _ in points.values()) / 2, 2 * max(x.max() for x, _ in points.values()))
        for (name, (x, y)), colour, marker in zip(points.items(), _LINE_COLOURS, "os^", strict=False):
            axes.plot(span, np.minimum(peaks[name], span * bytes_per_second) / 1e9, color=colour, linewidth=1)
            axes.scatter(x, y / 1e9, s=12, color=colour, marker=marker, label=name, linewidths=0, alpha=0.8)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("multiply-accumulates per byte")
        axes.set_ylabel("billion multiply-accumulates / s")
        axes.legend(loc="upper left", fontsize=8)
        return as_svg(figure, "Roofline: layers by arithmetic intensity and speed")


def sensitivities(decibels: np.ndarray, layers: Sequence[str], formats: Sequence[str]) -> str:
    """A heat map of the signal-to-noise ratio of logits in dB, float[L, K], with one layer quantised to one format."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.24 * len(layers) + 0.6))
        axes = figure.subplots()
        axes.imshow(decibels, aspect="auto", cmap="YlOrBr_r", vmin=0, vmax=60)
        axes.grid(visible=False)
        axes.set_xticks(range(len(formats)), formats)
        axes.xaxis.tick_top()
        axes.set_yticks(range(len(layers)), layers, fontsize=7.5)
        for (layer, fmt), value in np.ndenumerate(decibels):
            axes.text(
                fmt, layer, f"{value:.0f}", ha="center", va="center", fontsize=7, color="w" if value < 25 else "k"
            )
        return as_svg(figure, "Signal-to-noise ratio in decibels of the logits when one layer alone is quantised")


def policy_over_time(lines: Sequence[Run], decisions: Sequence[Mapping[str, Any]]) -> str:
    """A heat map of the policy over steps: a band per decision and a row per option, darker for higher probability.

    Args:
      lines: logged metrics; `"policy"` holds probabilities, [D, Kmax].
      decisions: the D decisions, with `"name"`, `"options"` (formats) and the `"bits"` of each option. Decisions with a
        single option are left out.
    """
    with matplotlib.rc_context(STYLE):
        probabilities = np.asarray([line["policy"] for line in lines])  # [T, D, K]
        bands, ticks, names, height = [], [], [], 0
        for d, decision in enumerate(decisions):
            count = len(decision["options"])
            if count > 1:
                colours = np.asarray([to_rgb(bit_colour(b)) for b in decision["bits"]])  # [K, 3]
                # White where improbable; a white row after each band.
                bands += [1 - probabilities[:, d, :count, None] * (1 - colours), np.ones((len(lines), 1, 3))]
                ticks.append(height + count / 2)
                names.append(decision["name"].removesuffix(".format"))
                height += count + 1
        image = np.concatenate(bands, axis=1).transpose(1, 0, 2)
        figure = Figure(figsize=(WIDTH, min(max(0.11 * height, 2.6), 12.0)))
        axes = figure.subplots()
        axes.imshow(image, aspect="auto", interpolation="nearest", extent=(0, lines[-1]["step"], height, 0))
        axes.grid(visible=False)
        axes.set_yticks(ticks, names, fontsize=7.5)
        axes.set_xlabel("step")
        bits_by_label = {
            name: b for decision in decisions for name, b in zip(decision["options"], decision["bits"], strict=True)
        }
        if len(bits_by_label) > 6:
            bits_by_label = {f"{b} bits": b for b in sorted(set(bits_by_label.values()))}
        handles = [Patch(color=bit_colour(b), label=label) for label, b in bits_by_label.items()]
        axes.legend(handles=handles, ncols=6, loc="lower left", bbox_to_anchor=(0, 1), handlelength=1, columnspacing=1)
        return as_svg(figure, "Probability of each format of each decision over training")


def is_uniform(run: Run) -> bool:
    """Whether a run is a uniform baseline: one format in all layers without a pinned format."""
    return run["kind"] == UNIFORM
