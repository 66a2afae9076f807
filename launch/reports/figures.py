"""The figures about FLIQS runs, as SVG text in the font of the page."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import LogLocator, NullFormatter

from aqt_like.formats import parse_format
from aqt_like.frozen_network import FrozenNetwork, Kernel
from hwcost.genome_file import decides_format
from launch.reports.charts import (
    ACCENT,
    HEIGHT,
    INK,
    LONGEST_NAME,
    SECOND,
    STYLE,
    WIDE,
    WIDTH,
    as_svg,
    bit_colour,
    blank,
    cut,
    legend_above,
    place_labels,
)
from launch.training.experiment import RANDOM_SEARCH, SEARCHED, UNIFORM

_SHORTEST_PART = 7  # characters that one part of a name in pictures is cut to
_POINTS_PER_CHARACTER = 4.6  # mean width at 8 points

Run = Mapping[str, Any]


def readable_cost(unit: str) -> tuple[float, str]:
    """The factor from a unit to a more readable unit, and the name of that unit."""
    return {"bit operations": (1e-6, "Mbit ops"), "bytes": (1e-3, "KB")}.get(unit, (1.0, unit))


def quality_on_test(run: Run) -> float:
    """The quality of a run on the test split, in the measure that its summary names."""
    return run[run["quality"]]


def network_of(run: Run) -> tuple[Any, ...]:
    """What tells networks apart: the model of the config, if the summary has it, and the layers with their MACs.

    Of a searched architecture, those of the network that the search began with.
    """
    config = run.get("config", {})
    # Summaries of earlier versions do not say what a search began with: there, what it chose among tells them apart.
    searched = config.get("architecture") if "base" not in run else None
    layers = run.get("base", run)["layers"]
    return config.get("model"), searched or [(layer["path"], layer["macs"]) for layer in layers]


FORMATS, ARCHITECTURE, BOTH, GIVEN = "formats", "architecture", "both", ""


def searched_in(run: Run) -> str:
    """What was searched in a run: formats, an architecture, or both; `""` for a run that searched nothing."""
    if run["kind"] not in (SEARCHED, RANDOM_SEARCH):
        return GIVEN
    decided = [decides_format(each["name"]) for each in run.get("decisions", ()) if len(each["options"]) > 1]
    if all(decided):
        return FORMATS
    return BOTH if any(decided) else ARCHITECTURE


_MARKERS = {
    FORMATS: (ACCENT, "*", 70),
    ARCHITECTURE: (SECOND, "D", 34),
    BOTH: ("#7c3aed", "P", 60),
    GIVEN: (ACCENT, "*", 70),
}  # by what was searched: colour, marker, size


def pareto(runs: Sequence[Run], *, width: float = WIDTH) -> str:
    """Test quality against cost, with the Pareto front of each network's uniform baselines as a line (FLIQS, Figure 5).

    Baselines are labelled by their formats, other runs by their names; colours and markers say what was searched. The
    axis of costs is logarithmic where they span a factor of ten.
    """
    with matplotlib.rc_context(STYLE):
        figure = blank(width=width)
        axes = figure.subplots()
        uniform = sorted((r for r in runs if is_uniform(r)), key=lambda r: (r["cost"], -quality_on_test(r)))
        factor, unit = readable_cost(runs[0]["cost_unit"])
        several = any(network_of(r) != network_of(runs[0]) for r in runs)
        left = uniform
        while left:
            alike = [r for r in left if network_of(r) == network_of(left[0])]
            left = [r for r in left if network_of(r) != network_of(left[0])]
            best = np.maximum.accumulate([quality_on_test(r) for r in alike])
            front = [r for r, top in zip(alike, best, strict=True) if quality_on_test(r) >= top]
            x, y = [r["cost"] * factor for r in front], [100 * quality_on_test(r) for r in front]
            axes.plot(x, y, color="#b6bbc3", zorder=1)
        searched = [r for r in runs if not is_uniform(r)]
        labels = {}  # in order and without duplicates: several runs may share a baseline
        for run in (*searched, *uniform):
            colour, marker, size = (INK, "o", 34) if is_uniform(run) else _MARKERS[searched_in(run)]
            x, y = run["cost"] * factor, 100 * quality_on_test(run)
            axes.scatter(x, y, s=size, color=colour, marker=marker, zorder=3)
            labels[x, y, _label(run, several_networks=several)] = colour
        found = [what for what in _MARKERS if what and what in map(searched_in, runs)]
        if found not in ([], [FORMATS]):
            for what in found:
                colour, marker, size = _MARKERS[what]
                axes.scatter([], [], s=size, color=colour, marker=marker, label=what)
            legend_above(axes)
        for target in sorted({r["target"] for r in searched}):
            axes.axvline(target * factor, color=ACCENT, linestyle=":", linewidth=1, zorder=0)
        costs = [r["cost"] for r in runs]
        logarithmic = min(costs) > 0 and max(costs) >= 10 * min(costs)
        if logarithmic:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if max(costs) < 1000 * min(costs) else (1,)))
            axes.xaxis.set_minor_formatter(NullFormatter())
        else:
            axes.locator_params(axis="x", nbins=6)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
        axes.margins(x=0.14, y=0.14)  # room for labels
        axes.set_xlabel(f"cost ({unit}{', log scale' if logarithmic else ''}{'; dotted: target' if searched else ''})")
        axes.set_ylabel(f"test {runs[0]['quality']} (%)")
        place_labels(figure, axes, labels)
        return as_svg(figure, f"Test {runs[0]['quality']} against cost of the searched and the uniform networks")


def _label(run: Run, *, several_networks: bool) -> str:
    """The name of a run beside its point; of a baseline, the format, and its place where networks differ."""
    if not is_uniform(run):
        return run["name"]
    name = run["name"].removeprefix("uniform ")
    return name if several_networks else name.partition(" (")[0]


def cost_shares(run: Run) -> str:
    """Shares of the layers in the cost of a run, and in its bit operations (FLIQS, Eq. 1) if that is another cost."""
    with matplotlib.rc_context(STYLE):
        layers = run["layers"]
        shares = {run["cost_name"]: [layer["cost"] for layer in layers]}
        if run["cost_unit"] != "bit operations":
            shares["bit operations"] = [layer["bits"] ** 2 * layer["macs"] for layer in layers]
        names = LayerNames(layers)
        figure = blank(width=names.width, height=1.7 + names.height)
        axes = figure.subplots()
        places, width = np.arange(len(layers)), 0.84 / len(shares)
        for i, (name, costs) in enumerate(shares.items()):
            colours = [bit_colour(layer["bits"]) for layer in layers] if i == 0 else "#b6bbc3"
            heights = 100 * np.asarray(costs) / (sum(costs) or 1)  # where nothing costs anything, no bars
            axes.bar(places + (i - (len(shares) - 1) / 2) * width, heights, width, color=colours, label=name)
        axes.set_ylabel("share (%)")
        axes.grid(axis="x", visible=False)
        names.write(axes)
        return as_svg(figure, "Share of each layer in the cost of the network")


def storage(network: FrozenNetwork) -> str:
    """The bytes of a frozen network, the codes of each layer in the colour of their bits, beside those of float32."""
    with matplotlib.rc_context(STYLE):
        figure = blank(width=WIDE, height=1.5)
        axes = figure.subplots()
        axes.barh(1, network.float32_bytes() / 1000, color="#d9dce1")
        kernels = [layer.weights.packed for layer in network.layers.values() if isinstance(layer.weights, Kernel)]
        parts = [(parse_format(packed.format).bits, packed.codes.nbytes) for packed in kernels]
        sizes, start = network.sizes(), 0.0
        bars = [(size, bit_colour(bits)) for bits, size in parts]
        bars += [(sizes["scales"], "#8a919c"), (sizes["others"], "#b6bbc3")]
        for size, colour in bars:
            axes.barh(0, size / 1000, left=start, color=colour, edgecolor="w", linewidth=0.3)
            start += size / 1000
        labels = {f"{bits} bits": bit_colour(bits) for bits in sorted({bits for bits, _ in parts})}
        labels |= {"scales of codes": "#8a919c", "not quantised": "#b6bbc3"}
        handles = [Patch(color=colour, label=label) for label, colour in labels.items()]
        axes.set_yticks([0, 1], ["this network", "in float32"])
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("kB")
        axes.legend(handles=handles, ncols=10, loc="lower left", bbox_to_anchor=(0, 1), handlelength=1, columnspacing=1)
        return as_svg(figure, "Bytes of the network beside those of float32")


def short_names(paths: Sequence[str]) -> list[str]:
    """Paths of layers as pictures show them: parts of long ones are shortened in the middle.

    Shortened names stay different; where they would not, the paths are returned whole.
    """
    short = [_shortened(path.replace("_block", ".").replace("stage", "s")) for path in paths]
    return short if len(set(short)) == len(set(paths)) else list(paths)


def _shortened(path: str) -> str:
    parts = path.split("/")
    lengths = [len(part) for part in parts]
    while sum(lengths) + len(parts) - 1 > LONGEST_NAME and max(lengths) > _SHORTEST_PART:
        lengths[int(np.argmax(lengths))] -= 1
    return "/".join(cut(part, length) for part, length in zip(parts, lengths, strict=True))


class LayerNames:
    """The names of layers along the x axis: horizontal where they fit, slanted or upright where they do not.

    Attributes:
      width: of the figure, in inches.
      height: that the names need, in inches.
      pitch: from layer to layer, in points.
    """

    def __init__(self, layers: Sequence[Mapping[str, Any]]) -> None:
        self._names = short_names([layer["path"] for layer in layers])
        self.width = max(WIDE, 0.15 * len(layers))
        self.pitch = 72 * (self.width - 0.7) / len(layers)
        length = _POINTS_PER_CHARACTER * max(map(len, self._names))
        self._angle = 0 if length < self.pitch else 45 if self.pitch > 18 else 90
        self.height = max(length * np.sin(np.radians(self._angle)) / 72, 0.15) + 0.1

    def write(self, axes: Axes) -> None:
        """Labels the x axis with the names."""
        for name in axes.set_xticks(range(len(self._names)), self._names, rotation=self._angle, fontsize=8):
            if self._angle:
                name.label1.set(ha="right", va="center", rotation_mode="anchor")
        axes.tick_params(axis="x", length=2, pad=3)
        axes.set_xlim(-0.6, len(self._names) - 0.4)


def formats_over_depth(runs: Sequence[Run]) -> str:
    """The formats of the layers over depth, one row of bars per run (FLIQS, Figures 3 and 7)."""
    with matplotlib.rc_context(STYLE):
        count = len(runs[0]["layers"])
        names = LayerNames(runs[0]["layers"])
        upright = names.pitch > 22  # as wide as "bf16"
        most = max(16, *(layer["bits"] for run in runs for layer in run["layers"]))
        figure = blank(width=names.width, height=(1.2 if upright else 1.35) * len(runs) + names.height)
        rows = figure.subplots(len(runs), 1, sharex=True, squeeze=False)[:, 0]
        for axes, run in zip(rows, runs, strict=True):
            bits = [layer["bits"] for layer in run["layers"]]
            axes.bar(range(count), bits, color=[bit_colour(b) for b in bits], width=0.86)
            for i, layer in enumerate(run["layers"]):
                axes.annotate(
                    layer["format"].removeprefix("int"), (i, bits[i]), xytext=(0, 1.5), textcoords="offset points",
                    ha="center", va="bottom", fontsize=8, rotation=0 if upright else 90, color=INK,
                )  # fmt: skip
            axes.set_ylim(0, most * (1.3 if upright else 1.6))
            axes.set_yticks([tick for tick in (4, 8, 16, 32) if tick <= most])
            axes.grid(axis="x", visible=False)
            axes.set_title(
                f"{run['name']}: {100 * quality_on_test(run):.2f} % at {run['relative_cost']:.3f} × target", loc="left"
            )
            axes.set_ylabel("bits")
        names.write(rows[-1])
        return as_svg(figure, "Number format of each layer over depth")


def curve(lines: Sequence[Run], series: Mapping[str, str], ylabel: str, *, reference: float | None = None) -> str:
    """Metrics over training steps; `series` maps names of metrics to labels."""
    with matplotlib.rc_context(STYLE):
        figure = blank()
        axes = figure.subplots()
        steps = [line["step"] for line in lines]
        for (name, label), colour in zip(series.items(), (SECOND, ACCENT), strict=False):
            axes.plot(steps, [line[name] for line in lines], color=colour, label=label)
        if reference is not None:
            axes.axhline(reference, color=INK, linestyle=":", linewidth=1)
        if len(series) > 1:
            legend_above(axes)
        axes.set_xlabel("step")
        axes.set_ylabel(ylabel)
        return as_svg(figure, f"{ylabel} over training steps")


def sensitivities(decibels: np.ndarray, layers: Sequence[str], formats: Sequence[str], measure: str) -> str:
    """A heat map in dB, float[L, K], of what `measure` names with one layer quantised to one format; low is dark."""
    with matplotlib.rc_context(STYLE):
        figure = blank(width=1.5 * WIDTH, height=0.24 * len(layers) + 0.8)
        axes = figure.subplots()
        axes.imshow(decibels, aspect="auto", cmap="YlOrBr_r", vmin=0, vmax=60)
        axes.grid(visible=False)
        axes.set_xticks(range(len(formats)), formats)
        axes.xaxis.tick_top()
        axes.set_yticks(range(len(layers)), short_names(layers), fontsize=8)
        for (layer, fmt), value in np.ndenumerate(decibels):
            axes.text(
                fmt, layer, f"{value:.0f}", ha="center", va="center", fontsize=7.5, color="w" if value < 25 else "k"
            )
        axes.set_xlabel(f"{measure} (dB)")
        return as_svg(figure, f"{measure} in decibels when one layer alone is quantised")


def scores(scores: Sequence[Sequence[float]], decisions: Sequence[Mapping[str, Any]], genome: Sequence[int]) -> str:
    """A heat map of how far each option's score is behind the best of its decision, in percent of the largest distance.

    Args:
      scores: score of each option of each of the D decisions.
      decisions: the D decisions, with `"name"` and `"options"`. Decisions with a single option are left out.
      genome: chosen option of each decision.
    """
    rows = [d for d, decision in enumerate(decisions) if len(decision["options"]) > 1] or [0]
    columns = list(dict.fromkeys(option for d in rows for option in decisions[d]["options"]))
    behind = np.full((len(rows), len(columns)), np.nan)
    for row, d in enumerate(rows):
        places = [columns.index(option) for option in decisions[d]["options"]]
        behind[row, places] = max(scores[d]) - np.asarray(scores[d])
    percent = 100 * behind / (np.nanmax(behind) or 1.0)
    with matplotlib.rc_context(STYLE):
        figure = blank(width=WIDE, height=0.24 * len(rows) + 0.6)
        axes = figure.subplots()
        shown = np.log10(np.maximum(percent, 1e-3))
        axes.imshow(shown, aspect="auto", cmap="YlOrBr", vmin=-3, vmax=2.3)
        axes.grid(visible=False)
        axes.set_xticks(range(len(columns)), columns)
        axes.xaxis.tick_top()
        axes.set_yticks(
            range(len(rows)), short_names([decisions[d]["name"].removesuffix(".format") for d in rows]), fontsize=8
        )
        for (row, column), value in np.ndenumerate(percent):
            if np.isfinite(value):
                colour = "w" if shown[row, column] > 1.3 else "k"
                told = f"{value:.0f}" if value >= 10 else f"{value:.2g}"
                axes.text(column, row, told, ha="center", va="center", fontsize=7.5, color=colour)
        for row, d in enumerate(rows):
            chosen = columns.index(decisions[d]["options"][genome[d]])
            axes.add_patch(Rectangle((chosen - 0.48, row - 0.45), 0.96, 0.9, fill=False, edgecolor=SECOND, linewidth=2))
        return as_svg(figure, "Distance of each format's score from the best of its layer, in percent of the largest")


def policy_over_time(lines: Sequence[Run], decisions: Sequence[Mapping[str, Any]]) -> str:
    """A heat map of the policy over steps: a band per decision and a row per option, darker for higher probability.

    Args:
      lines: logged metrics; `"policy"` holds probabilities, [D, Kmax].
      decisions: the D decisions, with `"name"`, `"options"`, and the `"bits"` of each option, if options are formats;
        sizes are the darker, the larger. Decisions with a single option are left out.
    """
    with matplotlib.rc_context(STYLE):
        probabilities = np.asarray([line["policy"] for line in lines])  # [T, D, K]
        bands, ticks, names, height = [], [], [], 0
        for d, decision in enumerate(decisions):
            count = len(decision["options"])
            if count > 1:
                shades = [bit_colour(b) for b in decision["bits"]] or [
                    f"{0.75 - 0.7 * k / count}" for k in range(count)
                ]
                colours = np.asarray([to_rgb(shade) for shade in shades])  # [K, 3]
                # White where improbable; a white row after each band.
                bands += [1 - probabilities[:, d, :count, None] * (1 - colours), np.ones((len(lines), 1, 3))]
                ticks.append(height + count / 2)
                names.append(decision["name"].removesuffix(".format"))
                height += count + 1
        image = np.concatenate(bands, axis=1).transpose(1, 0, 2)
        figure = blank(width=WIDE, height=max(HEIGHT, min(0.06 * height, 5.0), 0.15 * len(names)))
        axes = figure.subplots()
        axes.imshow(image, aspect="auto", interpolation="nearest", extent=(0, lines[-1]["step"], height, 0))
        axes.grid(visible=False)
        axes.set_yticks(ticks, short_names(names), fontsize=8)
        axes.set_xlabel("step")
        bits_by_label = {
            name: b for decision in decisions for name, b in zip(decision["options"], decision["bits"], strict=False)
        }
        if len(bits_by_label) > 6:
            bits_by_label = {f"{b} bits": b for b in sorted(set(bits_by_label.values()))}
        handles = [Patch(color=bit_colour(b), label=label) for label, b in bits_by_label.items()]
        axes.legend(handles=handles, ncols=8, loc="lower left", bbox_to_anchor=(0, 1), handlelength=1, columnspacing=1)
        return as_svg(figure, "Probability of each format of each decision over training")


def is_uniform(run: Run) -> bool:
    """Whether a run is a uniform baseline: one format in all layers without a pinned format."""
    return run["kind"] == UNIFORM
