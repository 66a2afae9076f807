"""Charts and their style, as SVG text in the font of the page."""

import html
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import LogLocator, NullFormatter
from matplotlib.transforms import Bbox

WIDTH, HEIGHT = 4.4, 2.9  # inches; narrow, so that text stays legible on a phone
WIDE = 2 * WIDTH  # inches; of pictures over the whole width of a page

STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",  # the same run gives the same file
    "text.parse_math": False,  # names are drawn as they are, dollars included
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
LONGEST_NAME = 32  # characters of a name in pictures
INK, ACCENT, SECOND = "#3b4048", "#c2410c", "#2563eb"

_LINE_COLOURS = (ACCENT, SECOND, INK)
_RASTER_DPI = 200
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


def bit_colour(bits: int) -> str:
    """The colour of formats with this number of bits."""
    return _BIT_COLOURS[min(_BIT_COLOURS, key=lambda known: abs(known - bits))]


def ink_on(bits: int) -> str:
    """The colour of text that can be read on `bit_colour(bits)`."""
    luminance = np.dot(to_rgb(bit_colour(bits)), (0.2126, 0.7152, 0.0722))
    return "black" if luminance > 0.5 else "white"


def blank(*, width: float = WIDTH, height: float = HEIGHT) -> Figure:
    """An empty figure, in inches, whose content is laid out within it: pictures of one width have text of one size."""
    return Figure(figsize=(width, height), dpi=72, layout="constrained")


def legend_above(axes: Axes) -> None:
    """Adds a legend in one line above the axes, where it hides no data."""
    _, labels = axes.get_legend_handles_labels()
    axes.legend(
        fontsize=8, ncols=len(labels), loc="lower right", bbox_to_anchor=(1, 1), handlelength=1.4, columnspacing=1
    )


def as_svg(figure: Figure, description: str) -> str:
    """Inline SVG that scales to the width of its column, with `description` as text for screen readers."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", dpi=_RASTER_DPI, transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    opening = re.search(r"<svg [^>]*>", text)
    assert opening is not None
    scalable = re.sub(r' (width|height)="[^"]*"', "", opening[0]).replace(
        "<svg", f'<svg role="img" aria-label="{html.escape(description)}"'
    )
    return scalable + text[opening.end() :]


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


def cut(text: str, length: int) -> str:
    """A text of at most `length` characters: the start and the end, which often is a number, of a longer one."""
    return text if len(text) <= length else f"{text[: length // 2]}…{text[len(text) - (length - 1) // 2 :]}"


def place_labels(figure: Figure, axes: Axes, labels: Mapping[tuple[float, float, str], str]) -> None:
    """Writes labels (x, y, text) in their colours beside their points, where they hide no point and no other label.

    Long ones are cut in the middle; tables have them whole.
    """
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # lays out the axes
    points = axes.transData.transform([(x, y) for x, y, _ in labels])
    taken = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in points]
    # Near places first, and of these the sides; a label far from its point has a line to it.
    offsets = [
        (side * reach, rise)
        for reach in (7, 14, 28, 42)
        for rise in (0, reach, -reach)
        for side in (1, -1)
    ] + [(0, rise) for rise in (10, -10, 22, -22)]  # fmt: skip
    line = {"arrowstyle": "-", "linewidth": 0.5, "shrinkA": 0, "shrinkB": 4}
    inside = axes.get_window_extent().padded(-1)
    for (x, y, text), colour in labels.items():
        trials = []
        for offset in offsets:
            trial = axes.annotate(
                cut(text, LONGEST_NAME), (x, y), xytext=offset, textcoords="offset points", color=colour, fontsize=8,
                va="center", ha={1: "left", 0: "center", -1: "right"}[int(np.sign(offset[0]))], zorder=2,
                in_layout=False, arrowprops=line | {"color": colour} if max(map(abs, offset)) > 10 else None,
            )  # fmt: skip
            trial.update_positions(canvas.get_renderer())
            box = Text.get_window_extent(trial, canvas.get_renderer()).padded(1)  # without the line
            hidden = sum(_shared_area(box, other) for other in taken)
            outside = box.width * box.height - _shared_area(box, inside)
            trials.append((hidden + 10 * outside, trial, box))
        _, chosen, box = min(trials, key=lambda entry: entry[0])  # the first of equals
        taken.append(box)
        for _, trial, _ in trials:
            if trial is not chosen:
                trial.remove()


def _shared_area(box: Bbox, other: Bbox) -> float:
    shared = Bbox.intersection(box, other)
    return 0.0 if shared is None else shared.width * shared.height


def lines(
    series: Mapping[str, tuple[Sequence[Any], Sequence[float]]], *, xlabel: str, ylabel: str, log: bool = False
) -> str:
    """Labelled lines (x, y) with different colours, dashes and markers."""
    with matplotlib.rc_context(STYLE):
        figure = blank(width=1.5 * WIDTH)
        axes = figure.subplots()
        styles = zip(_LINE_COLOURS * 3, ["-"] * 3 + ["--"] * 3 + [":"] * 3, "os^DvxP*<", strict=True)
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
    """Scatter plots of series (x, y), one panel each; `diagonal` adds the line x = y.

    Clouds of a hundred points and more are drawn as pixels, which take less space than shapes.
    """
    with matplotlib.rc_context(STYLE):
        figure = blank(width=WIDTH if len(series) == 1 else WIDE)
        panels = figure.subplots(1, len(series), squeeze=False)[0]
        for axes, (name, (x, y)) in zip(panels, series.items(), strict=True):
            few = len(x) < 100
            size, alpha = (14, 0.8) if few else (3, 0.35)
            axes.scatter(x, y, s=size, color=SECOND, alpha=alpha, linewidths=0, rasterized=not few)
            if diagonal:
                axes.axline((x.min(), x.min()), slope=1, color=INK, linewidth=1, zorder=0)
            axes.set_title(name, loc="left")
            axes.set_xlabel(xlabel)
        panels[0].set_ylabel(ylabel)
        return as_svg(figure, f"{ylabel} over {xlabel}")


def roofline(
    points: Mapping[str, tuple[np.ndarray, np.ndarray]], *, peaks: Mapping[str, float], bytes_per_second: float
) -> str:
    """A roofline plot of layers: MACs per second against MACs per byte, with points and a roofline for each name."""
    with matplotlib.rc_context(STYLE):
        figure = blank(height=3.4)
        axes = figure.subplots()
        span = np.geomspace(min(x.min() for x, _ in points.values()) / 2, 2 * max(x.max() for x, _ in points.values()))
        for (name, (x, y)), colour, marker in zip(points.items(), _LINE_COLOURS, "os^", strict=False):
            axes.plot(span, np.minimum(peaks[name], span * bytes_per_second) / 1e9, color=colour, linewidth=1)
            axes.scatter(x, y / 1e9, s=12, color=colour, marker=marker, label=name, linewidths=0, alpha=0.8)
        axes.set_xscale("log")
        axes.set_yscale("log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(lambda value, _: f"{value:,g}")
            axis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("multiply-accumulates per byte")
        axes.set_ylabel("billion multiply-accumulates / s")
        axes.legend(loc="upper left", fontsize=8)
        return as_svg(figure, "Roofline: layers by arithmetic intensity and speed")
