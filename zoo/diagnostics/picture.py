"""The audit as a picture: a network's layers in order, and what BatchNorm remembers at each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import exp
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoo.core.pictures import save_figure
from zoo.core.text import counted, first_line
from zoo.diagnostics.forward import forward_batch
from zoo.diagnostics.moments import Normalizations, PooledMoments, RunningStatistics
from zoo.diagnostics.recalibrate import recalibrate
from zoo.diagnostics.trace.graph import Node
from zoo.diagnostics.trace.operations import NORMS
from zoo.diagnostics.trace.recorder import record
from zoo.diagnostics.trace.snapshot import begin_training, eagerly, untouched
from zoo.diagnostics.variance_shift import NOTHING, VarianceShift, variance_shift
from zoo.errors import UserError

# Heights and greys of the row of layers differ too, for print without color.
KINDS = {
    "layer": ("convolution or linear layer", "#cccccc", 0.45),
    "norm": ("normalization", "#56B4E9", 0.7),
    "dropout": ("dropout", "#111111", 1.0),
}
FAULT, MENDED = "#D55E00", "#0072B2"  # Okabe & Ito's, for color blindness


@dataclass(frozen=True)
class Layer:
    """One layer of a recorded forward: its kind (a key of ``KINDS``) and the module's path."""

    kind: str
    module: str


@dataclass(frozen=True)
class Repair:
    """What ``recalibrate`` does to a model's running variances."""

    before: VarianceShift
    after: VarianceShift


def layers_in_order(nodes: Iterable[Node]) -> list[Layer]:
    """Returns the layers of a recorded forward in the order in which they run."""
    found = []
    for node in nodes:
        if node.dropout is not None:
            found.append(Layer("dropout", node.module))
        elif node.batch_norm is not None:
            found.append(Layer("norm", node.batch_norm.holder))
        elif node.op in NORMS:
            found.append(Layer("norm", node.module))
        elif node.data and (node.op.startswith("conv") or node.op == "linear"):
            found.append(Layer("layer", node.module))
    return found


def measure_repair(
    model: nn.Module,
    batches: Sequence[Any],
    *,
    learn: bool,
) -> Repair:
    """Measures running variance over the variance in evaluation, before and after ``recalibrate``.

    One pass of it, which is enough for a picture. The model comes out untouched.

    Args:
        model: any module with running statistics.
        batches: of inputs, as ``variance_shift`` takes them.
        learn: first sets the running statistics to those that training mode sees on the batches,
            with dropout on, in place of those that the model holds. Needed where the model holds
            none, or those of other data.

    Raises:
        UserError: as ``variance_shift`` and ``recalibrate`` do.
    """
    with untouched(model):
        if learn:
            _learn(model, batches)
        before = variance_shift(model, batches)
        recalibrate(model, batches, passes=1)  # further ones would bring it closer to 1
        return Repair(before, variance_shift(model, batches))


@torch.no_grad()
def _learn(model: nn.Module, batches: Iterable[Any]) -> None:
    """Remembers what training mode sees, every batch with the same weight."""
    norms = Normalizations(model)
    gathered: dict[RunningStatistics, PooledMoments] = {}

    def gather(norm: RunningStatistics, x: torch.Tensor, axis: int) -> None:
        gathered.setdefault(norm, norm.moments()).update(x, axis)

    begin_training(model)
    with eagerly(model), norms.watching(gather):
        for batch in batches:
            forward_batch(model, batch)
    for norm, moments in gathered.items():
        if norm in norms.live:
            norm.remember(*moments.reduce())


def draw_audit(
    model: nn.Module,
    example: tuple[Any, ...],
    at_fault: Iterable[str],
    repair: Repair,
    picture: Path,
    *,
    title: str,
    measured: str,
) -> None:
    """Draws a network's layers in order and, below each BatchNorm, its running variance.

    Args:
        model: the audited model.
        example: positional arguments of its forward.
        at_fault: paths of the normalizations that the audit's warnings and errors name.
        repair: what ``measure_repair`` gave.
        picture: a PNG.
        title: the model's name.
        measured: on which data, in a sentence.

    Raises:
        UserError: there is no BatchNorm to draw, or the model does not run in training mode.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not repair.before.layers:
        raise UserError(f"{title} has no BatchNorm with running statistics: nothing to draw")
    try:
        layers = layers_in_order(record(model, example, mode="training").nodes)
    except Exception as error:  # whatever the model's forward raises
        raise UserError(
            f"{title} does not run in training mode: {type(error).__name__}: {first_line(error)}"
        ) from error
    places = {layer.module: place for place, layer in enumerate(layers) if layer.kind == "norm"}
    before = {s.module: s.running_ratio for s in repair.before.layers if s.module in places}
    after = {s.module: s.running_ratio for s in repair.after.layers}
    faulty = [module for module in before if module in set(at_fault)]
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    row, plot = figure.subplots(2, 1, sharex=True, height_ratios=[1, 3.2])
    _draw_row(row, layers, [places[module] for module in faulty])
    _draw_variances(plot, places, before, after, faulty)
    plot.set_xlim(-1, len(layers))
    names, middles = _stages(row, plot, layers)
    plot.set_xticks(middles, names, fontsize=9)
    unseen = len(places) - len(before)
    if unseen:
        more = counted(unseen, "more normalization has", "more normalizations have")
        measured += f" {more} no running variance in evaluation."
    figure.suptitle(f"{title}: {_message(len(faulty), len(before))}", fontsize=13)
    figure.supxlabel(measured, fontsize=8)
    save_figure(figure, picture, dpi=120)


def _message(faulty: int, total: int) -> str:
    if not faulty:
        return f"none of {total} BatchNorm layers is at fault"
    return f"{faulty} of {counted(total, 'BatchNorm layer')} at fault"


def _draw_row(axis: Any, layers: list[Layer], faulty: list[int]) -> None:
    for kind, (label, color, height) in KINDS.items():
        at = [place for place, layer in enumerate(layers) if layer.kind == kind]
        if at:
            axis.bar(at, [height] * len(at), width=0.9, color=color, label=label)
    if faulty:
        axis.plot(faulty, [1.2] * len(faulty), "v", color=FAULT, ms=4, label="at fault")
    axis.set_ylim(0, 1.35)
    axis.set_yticks([])
    axis.set_ylabel("layers,\nin order", fontsize=9)
    axis.tick_params(axis="x", length=0)
    axis.legend(ncols=4, fontsize=8, frameon=False, loc="lower left", bbox_to_anchor=(0, 1))


def _draw_variances(
    axis: Any,
    places: dict[str, int],
    before: dict[str, float],
    after: dict[str, float],
    faulty: list[str],
) -> None:
    sound = [module for module in before if module not in faulty]
    axis.axhspan(exp(-NOTHING), exp(NOTHING), color="#eeeeee", label="no shift")
    axis.axhline(1, color="#999999", lw=0.8)
    for module in faulty:
        axis.plot([places[module]] * 2, [before[module], after[module]], color="#cccccc", lw=1)
    for modules, marker, color, label in (
        (faulty, "v", FAULT, "before, at fault"),
        (sound, "s", "#777777", "before, other" if faulty else "before"),
    ):
        if modules:
            at = [places[module] for module in modules]
            values = [before[module] for module in modules]
            axis.plot(at, values, marker, color=color, ms=5, label=label)
    drawn = [module for module in before if module in after]
    axis.plot(
        [places[module] for module in drawn],
        [after[module] for module in drawn],
        "o",
        markerfacecolor="white",
        color=MENDED,
        ms=4,
        label="after zoo.recalibrate",
    )
    if faulty:
        worst = max(faulty, key=lambda module: abs(before[module] - 1))
        axis.annotate(
            f"{worst}: {before[worst]:.2f} → {after[worst]:.2f}",
            (places[worst], before[worst]),
            xytext=(0, 14),
            textcoords="offset points",
            arrowprops={"arrowstyle": "-", "color": "#111111"},
            ha="right" if places[worst] > max(places.values()) / 2 else "left",
            fontsize=10,
            fontweight="bold",
        )
        axis.margins(y=0.15)
    axis.set_ylabel("running variance /\nvariance in evaluation", fontsize=9)
    axis.legend(fontsize=8, loc="upper left", ncols=2)


def _stages(row: Any, plot: Any, layers: list[Layer]) -> tuple[list[str], list[float]]:
    """Separates the network's stages by lines; returns the names of the wide ones and where."""
    depth = 1
    while depth < 4 and len({_prefix(layer.module, depth) for layer in layers}) < 4:
        depth += 1
    names, middles, start = [], [], 0
    for name, group in groupby(layers, key=lambda layer: _prefix(layer.module, depth)):
        size = len(list(group))
        if start:
            for axis in (row, plot):
                axis.axvline(start - 0.5, color="#dddddd", lw=0.8, zorder=0)
        if size >= len(layers) / 12:  # the name of a narrower one would not be readable
            names.append(name.rpartition(".")[2])
            middles.append(start + (size - 1) / 2)
        start += size
    return names, middles


def _prefix(module: str, depth: int) -> str:
    return ".".join(module.split(".")[:depth])
