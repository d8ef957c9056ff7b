"""Pictures that a teacher shows: large type, colors that survive gray printing, bands, units."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import mean, stdev
from typing import Any

from zoo.study.runs import Run
from zoo.study.verdicts import standard_error

# From dark to light, the lightness L* (CIE 1976) growing by about ten from each to the next, so
# that grays differ; neighbors differ in blue against orange, which color blindness leaves.
COLORS = ("#000000", "#5E1A0A", "#0A4A8F", "#B03A00", "#0B84C4", "#CC79A7", "#E69F00", "#8FD3D8")
STYLES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
HATCHES = ("", "//", "..", "xx")
WIDTH = 10.0  # inches: what a projector's slide shows without shrinking the type
TITLE, PANEL, TEXT = 17, 14, 11.5  # points
TYPE: dict[Any, Any] = {
    "font.size": TEXT,
    "axes.titlesize": PANEL,
    "axes.titlelocation": "left",
    "axes.labelsize": TEXT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.fontsize": TEXT,
    "legend.title_fontsize": TEXT,
    "legend.framealpha": 0.8,
    "lines.linewidth": 2.0,
    "lines.markersize": 7.0,
}


@contextmanager
def large_type() -> Iterator[None]:
    """Figures that are made within have type for a projector; also as a decorator."""
    from matplotlib import rc_context

    with rc_context(TYPE):
        yield


def palette(count: int) -> list[str]:
    """So many colors from dark to light, as far apart in lightness as the eight allow."""
    if count > len(COLORS):
        return [COLORS[index % len(COLORS)] for index in range(count)]
    return [COLORS[(2 * index + 1) * len(COLORS) // (2 * count)] for index in range(count)]


def line(index: int, count: int) -> dict[str, Any]:
    """Color, line style and marker of a line among so many: each tells it by itself."""
    return {
        "color": palette(count)[index],
        "linestyle": STYLES[index % len(STYLES)],
        "marker": MARKERS[index % len(MARKERS)],
    }


def _empty(width: float, height: float) -> Any:
    """A figure without a window."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    # With a wider pad, tick labels at the ends of neighboring panels stay apart.
    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.1))
    FigureCanvasAgg(figure)
    return figure


def new_figure(rows: int, columns: int, width: float, height: float, **sharing: Any) -> Any:
    """A figure without a window, and its axes (rows, columns)."""
    figure = _empty(width, height)
    return figure, figure.subplots(rows, columns, squeeze=False, **sharing)


def new_mosaic(layout: Sequence[str], height: float, **options: Any) -> Any:
    """A figure as wide as a slide, and its axes by the letters of the rows of a layout."""
    figure = _empty(WIDTH, height)
    return figure, figure.subplot_mosaic("\n".join(layout), **options)


def draw_band(axis: Any, runs: Sequence[Run], metric: str, color: str, **style: Any) -> None:
    """A line over the epochs in which all runs that have a metric logged it.

    It goes through their means; a band of a standard deviation over them lies about it.
    """
    curves = [
        dict(zip(run.epochs_of(metric), run.curves[metric], strict=True))
        for run in runs
        if metric in run.curves
    ]
    if not curves:
        return
    epochs = sorted(set(curves[0]).intersection(*curves[1:]))
    values = [[curve[epoch] for curve in curves] for epoch in epochs]
    middle = [mean(found) for found in values]
    axis.plot(epochs, middle, color=color, **style)
    if len(curves) > 1:
        spread = [stdev(found) for found in values]
        low = [m - s for m, s in zip(middle, spread, strict=True)]
        high = [m + s for m, s in zip(middle, spread, strict=True)]
        axis.fill_between(epochs, low, high, color=color, alpha=0.2, linewidth=0)


def draw_over(
    axis: Any, places: Sequence[float], values: Sequence[Sequence[float]], **style: Any
) -> None:
    """A line through means over seeds, with a band of twice their standard error."""
    middle = [mean(found) for found in values]
    errors = [_error(found) for found in values]
    axis.plot(places, middle, **style)
    low = [m - e for m, e in zip(middle, errors, strict=True)]
    high = [m + e for m, e in zip(middle, errors, strict=True)]
    axis.fill_between(places, low, high, color=style["color"], alpha=0.2, linewidth=0)


def _error(values: Sequence[float]) -> float:
    """Twice the standard error over seeds; 0 to draw where there is one."""
    return 2 * (standard_error(values) or 0.0)


def finish(axis: Any, x: str, y: str, title: str = "") -> None:
    """Labels with units, broken where the panel ends, and a light grid; epochs are whole."""
    if x in ("epoch", "layer"):
        axis.xaxis.get_major_locator().set_params(integer=True)
    width, height = _inches(axis)
    axis.set_xlabel(_broken(x, 11.5 * width))
    axis.set_ylabel(_broken(y, 11.5 * height))
    axis.tick_params(labelsize=TEXT)  # ticks are made later, when the type may be another
    axis.grid(alpha=0.3)
    axis.set_axisbelow(True)
    if title:
        axis.set_title(_broken(title, 9 * width))


def _inches(axis: Any) -> tuple[float, float]:
    """About how wide and how high a panel is, without its labels."""
    place = axis.get_subplotspec()
    grid, figure = place.get_gridspec(), axis.get_figure()
    width = figure.get_figwidth() * len(place.colspan) / grid.ncols - 0.8
    height = figure.get_figheight() * len(place.rowspan) / grid.nrows - 0.9
    return max(1.0, width), max(1.0, height)


def _broken(text: str, characters: float) -> str:
    return "\n".join(
        line for part in text.splitlines() for line in textwrap.wrap(part, max(8, int(characters)))
    )


@large_type()
def draw_panels(groups: Mapping[str, Sequence[Run]], kind: str, title: str) -> Any:
    """A panel for each group, all with the same axes: training dashed, validation solid.

    Args:
        groups: runs that differ in their seed alone, by what the panel is called.
        kind: ``loss`` or ``accuracy``.
        title: of the picture: its message, and what else it says in further lines.
    """
    columns = min(3, len(groups))
    rows = -(-len(groups) // columns)
    figure, axes = new_figure(
        rows, columns, max(6.0, WIDTH * columns / 3), 2.7 * rows + 0.3, sharex=True, sharey=True
    )
    unit = "loss (nats)" if kind == "loss" else "accuracy"
    dark, light = palette(2)
    for axis, (name, runs) in zip(axes.flat, groups.items(), strict=False):
        draw_band(axis, runs, f"train_eval/{kind}", light, linestyle="--", label="training")
        draw_band(axis, runs, f"val/{kind}", dark, linestyle="-", label="validation")
        finish(axis, "epoch", unit, name)
        axis.label_outer()
    for place in range(len(groups), rows * columns):
        axes.flat[place].set_axis_off()
        above = axes.flat[place - columns]  # the last of its column
        above.tick_params(labelbottom=True)
        above.set_xlabel("epoch")
    if drawn := [axis for axis in axes.flat if axis.lines]:  # not that of a run that has no curve
        drawn[0].legend()
    values = [
        value
        for runs in groups.values()
        for run in runs
        for value in run.curves.get(f"val/{kind}", [])
    ]
    if values and kind == "accuracy":  # a network's first epochs would press the rest together
        axes.flat[0].set_ylim(max(0.0, sorted(values)[len(values) // 20] - 0.02), 1.005)
    elif values:
        axes.flat[0].set_ylim(0, 1.15 * sorted(values)[-1 - len(values) // 20])
    set_title(figure, *title.split("\n", 1))
    return figure


def set_title(figure: Any, message: str, text: str = "") -> None:
    """Writes the message over the panels, in large type, and a text in smaller type below it.

    The figure grows by their height, and the panels keep theirs.
    """
    width = figure.get_figwidth() - 0.3
    head, below = _broken(message, 7.6 * width), _broken(text, 11.2 * width)
    head_height = 1.25 * TITLE * (head.count("\n") + 1) / 72
    text_height = 1.3 * TEXT * (below.count("\n") + 1) / 72 if below else 0.0
    margin = 0.1
    height = figure.get_figheight() + head_height + text_height + 2 * margin
    panels = figure.get_figheight() / height
    figure.set_figheight(height)
    figure.get_layout_engine().set(rect=(0, 0, 1, panels))
    style = {"ha": "left", "va": "top"}
    figure.text(0.015, 1 - margin / height, head, fontsize=TITLE, **style)
    figure.text(0.015, 1 - (margin + head_height) / height, below, fontsize=TEXT, **style)


@large_type()
def draw_together(groups: Mapping[str, Sequence[Run]], title: str) -> Any:
    """Every group in the same two panels, loss and accuracy: training dashed, validation solid."""
    logged = {name for runs in groups.values() for run in runs for name in run.curves}
    kinds = [kind for kind in ("loss", "accuracy") if f"val/{kind}" in logged]
    columns = max(1, len(kinds))
    figure, axes = new_figure(1, columns, WIDTH * max(0.6, columns / 2), 4.2)
    colors = palette(len(groups))
    for axis, kind in zip(axes.flat, kinds, strict=False):
        for index, (name, runs) in enumerate(groups.items()):
            every = max(1, max(run.epochs for run in runs) // 5)
            style = {"marker": MARKERS[index % len(MARKERS)], "markevery": every, "markersize": 6}
            color = colors[index]
            draw_band(axis, runs, f"train_eval/{kind}", color, linestyle="--", **style)
            draw_band(axis, runs, f"val/{kind}", color, linestyle="-", label=name, **style)
        unit = "loss (nats)" if kind == "loss" else "accuracy"
        finish(axis, "epoch", unit, f"{kind}: validation solid, training dashed")
        axis.legend()
    several = any(len(runs) > 1 for runs in groups.values())
    set_title(figure, title, "Bands: ± one standard deviation over runs." if several else "")
    return figure


def draw_points(
    axis: Any,
    values: Mapping[str, Sequence[float]],
    unit: str,
    title: str,
    among: Iterable[str] = (),
) -> None:
    """A row for each name: the mean, twice its standard error, and every seed as a small dot.

    Args:
        axis: the panel.
        values: by name, one for each seed.
        unit: of the values, for the label.
        title: of the panel.
        among: the names of other panels, so that one name has one color and marker in all.
    """
    count, known = len(values), list(dict.fromkeys([*among, *values]))
    colors = palette(len(known))
    for row, (name, found) in enumerate(values.items()):
        middle, place, index = mean(found), count - 1 - row, known.index(name)
        color = colors[index]
        style = {"color": color, "marker": MARKERS[index % len(MARKERS)], "markersize": 9}
        axis.errorbar(middle, place, xerr=_error(found), capsize=5, **style)
        axis.plot(found, [place - 0.25] * len(found), ".", color=color, markersize=6)
        where: dict[str, Any] = {"xytext": (0, 7), "textcoords": "offset points", "ha": "center"}
        digits = f"{middle:#.3g}".rstrip(".")  # "#" keeps the 0s of 0.900
        axis.annotate(digits, (middle, place), fontsize=TEXT, **where)
    name_rows(axis, list(values))
    axis.margins(x=0.18)
    finish(axis, unit, "", title)


def name_rows(axis: Any, names: Sequence[str]) -> None:
    """Names from top to bottom along a panel whose rows stand at len - 1, …, 1, 0."""
    axis.set_yticks(range(len(names)), [_broken(name, 24) for name in reversed(names)])
    axis.set_ylim(-0.5, len(names) - 0.4)
