"""Pictures that a teacher shows: colors that survive grey printing, bands over seeds, units."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from zoo.study.runs import Run

# Okabe & Ito's palette for color blindness, from dark to light, so that greys differ too.
COLORS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
STYLES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def new_figure(rows: int, columns: int, width: float, height: float, **sharing: Any) -> Any:
    """A figure without a window, and its axes (rows, columns)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, **sharing)


def band(values: Sequence[Sequence[float]]) -> tuple[list[float], list[float], list[float]]:
    """Mean, and mean ∓ standard deviation over seeds, epoch by epoch; as long as the shortest."""
    middle, low, high = [], [], []
    for column in zip(*values, strict=False):
        spread = stdev(column) if len(column) > 1 else 0.0
        middle.append(mean(column))
        low.append(middle[-1] - spread)
        high.append(middle[-1] + spread)
    return middle, low, high


def draw_band(axis: Any, runs: Sequence[Run], metric: str, color: str, **style: Any) -> None:
    """A line over epochs of a metric that all runs logged, with a band over them."""
    curves = [run.curves[metric] for run in runs if metric in run.curves]
    if not curves:
        return
    middle, low, high = band(curves)
    epochs = range(1, len(middle) + 1)
    axis.plot(epochs, middle, color=color, **style)
    if len(curves) > 1:
        axis.fill_between(epochs, low, high, color=color, alpha=0.2, linewidth=0)


def finish(axis: Any, x: str, y: str, title: str = "") -> None:
    """Labels with units, and a light grid; epochs and layers are whole."""
    if x in ("epoch", "layer"):
        axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.grid(alpha=0.3)
    if title:
        axis.set_title(title, fontsize=11)


def draw_panels(groups: Mapping[str, Sequence[Run]], kind: str, title: str) -> Any:
    """A panel for each group, all with the same axes: training dashed, validation solid.

    Args:
        groups: runs that differ in their seed alone, by what the panel is called.
        kind: ``loss`` or ``accuracy``.
        title: of the picture, its message.
    """
    columns = min(4, len(groups))
    rows = -(-len(groups) // columns)
    figure, axes = new_figure(
        rows, columns, 3.4 * columns, 3 * rows + 0.7, sharex=True, sharey=True
    )
    unit = "loss (nats)" if kind == "loss" else "accuracy"
    for axis, (name, runs) in zip(axes.flat, groups.items(), strict=False):
        draw_band(axis, runs, f"train_eval/{kind}", COLORS[1], linestyle="--", label="training")
        draw_band(axis, runs, f"val/{kind}", COLORS[2], linestyle="-", label="validation")
        finish(axis, "epoch", unit, name)
    for place in range(len(groups), rows * columns):
        axes.flat[place].set_axis_off()
        axes.flat[place - columns].tick_params(labelbottom=True)  # the last of its column
    axes.flat[0].legend()
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
    set_title(figure, title)
    return figure


def set_title(figure: Any, text: str) -> None:
    """A title that is broken where the figure ends, line by line."""
    width = round(8.5 * figure.get_figwidth())
    lines = [line for part in text.splitlines() for line in textwrap.wrap(part, width)]
    figure.suptitle("\n".join(lines), fontsize=12)


def draw_together(groups: Mapping[str, Sequence[Run]], title: str) -> Any:
    """Every group in the same two panels, loss and accuracy: training dashed, validation solid."""
    logged = {name for runs in groups.values() for run in runs for name in run.curves}
    kinds = [kind for kind in ("loss", "accuracy") if f"val/{kind}" in logged]
    figure, axes = new_figure(1, max(1, len(kinds)), 6 * max(1, len(kinds)), 4.5)
    for axis, kind in zip(axes.flat, kinds, strict=False):
        for index, (name, runs) in enumerate(groups.items()):
            color, marker = COLORS[index % len(COLORS)], MARKERS[index % len(MARKERS)]
            style = {"marker": marker, "markevery": 0.2, "markersize": 5}
            draw_band(axis, runs, f"train_eval/{kind}", color, linestyle="--", **style)
            draw_band(axis, runs, f"val/{kind}", color, linestyle="-", label=name, **style)
        unit = "loss (nats)" if kind == "loss" else "accuracy"
        finish(axis, "epoch", unit, f"validation {kind} solid, training dashed")
        axis.legend(fontsize=8)
    set_title(figure, title)
    return figure


def draw_points(axis: Any, values: Mapping[str, Sequence[float]], unit: str, title: str) -> None:
    """A mean for each name, with twice its standard error over seeds and every seed as a dot."""
    for index, found in enumerate(values.values()):
        middle = mean(found)
        error = 2 * stdev(found) / len(found) ** 0.5 if len(found) > 1 else 0.0
        color, marker = COLORS[index % len(COLORS)], MARKERS[index % len(MARKERS)]
        axis.errorbar(
            index, middle, yerr=error, color=color, marker=marker, capsize=5, markersize=8
        )
        axis.plot([index + 0.15] * len(found), found, ".", color=color, alpha=0.5)
        place: dict[str, Any] = {"xytext": (-9, 6), "textcoords": "offset points", "ha": "right"}
        axis.annotate(f"{middle:.3g}", (index, middle), **place)
        axis.set_xlim(-0.8, len(values) - 0.5)
    axis.set_xticks(range(len(values)), list(values), rotation=20, ha="right")
    finish(axis, "", unit, title)
