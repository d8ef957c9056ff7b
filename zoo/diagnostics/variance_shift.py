"""Variance shift: BatchNorm's input with dropout on and off, and its running variance."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.core.pictures import save_figure
from zoo.diagnostics.forward import forward_batch
from zoo.diagnostics.moments import Normalizations, PooledMoments, RunningStatistics
from zoo.diagnostics.trace.snapshot import begin_training, eagerly, unseen_modules, untouched
from zoo.errors import UserError

# Of |ln ratio|: moving averages differ from the current weights by as much without any dropout.
NOTHING = 0.05


@dataclass(frozen=True)
class LayerShift:
    """The input of one BatchNorm.

    ``ratio`` is the median over channels of its variance with dropout on over that with dropout
    off; ``running_ratio`` the median of the running variance over the variance in evaluation, NaN
    where nothing was ever learned;
    ``drift`` the median of |mean on - mean off|, in standard deviations. ``channels`` (C,) and
    ``running_channels`` (C,) hold the ratios themselves, NaN where a channel is constant.
    """

    module: str
    ratio: float
    running_ratio: float
    drift: float
    channels: Tensor
    running_channels: Tensor
    learned: bool = True  # false: the running statistics are those of a fresh module


@dataclass(frozen=True)
class VarianceShift:
    """Every BatchNorm of a model, in the order in which they run."""

    model: str
    layers: list[LayerShift]

    @property
    def worst(self) -> LayerShift | None:
        """The layer one of whose ratios is farthest from 1."""
        return max(self.layers, key=_distance, default=None)

    def __str__(self) -> str:
        if not self.layers:
            return f"{self.model}: no BatchNorm with running statistics, so nothing can shift"
        width = max(len("BatchNorm"), *(len(layer.module) for layer in self.layers))
        lines = [
            f"{self.model}: variance of BatchNorm's input, medians over channels",
            f"{'BatchNorm':<{width}}  dropout on / off  running / evaluation  drift of means",
        ]
        for layer in self.layers:
            flag = "  <-" if _distance(layer) > NOTHING else ""
            running = f"{layer.running_ratio:.3f}" if layer.learned else "never learned"
            lines.append(
                f"{layer.module:<{width}}  {layer.ratio:>16.3f}  {running:>20}  "
                f"{layer.drift:>14.3f}{flag}"
            )
        if not all(layer.learned for layer in self.layers):
            lines.append("never learned: the running statistics are still the initial 0 and 1")
        lines.append(f"<- |ln ratio| is above {NOTHING}; {NOTHING} or less counts as no shift")
        return "\n".join(lines)

    def to_json(self) -> str:
        layers = [
            {
                "module": layer.module,
                "ratio": _number(layer.ratio),
                "running_ratio": _number(layer.running_ratio),
                "drift": _number(layer.drift),
                "channels": [_number(v) for v in layer.channels.tolist()],
                "running_channels": [_number(v) for v in layer.running_channels.tolist()],
            }
            for layer in self.layers
        ]
        return json.dumps({"model": self.model, "layers": layers}, indent=2)

    def draw(self, picture: str | Path) -> None:
        """Draws both ratios of every layer into a PNG; the gray band counts as no shift."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        names = [layer.module for layer in self.layers]
        figure = Figure(figsize=(min(15.0, 0.3 * len(names) + 5), 4.5), layout="constrained")
        FigureCanvasAgg(figure)
        axis = figure.subplots()
        axis.axhspan(
            math.exp(-NOTHING), math.exp(NOTHING), color="gray", alpha=0.25, label="no shift"
        )
        places = range(len(names))
        # Layers are categories: markers without a line between them.
        axis.plot(places, [layer.ratio for layer in self.layers], "o", label="dropout on / off")
        axis.plot(
            places,
            [layer.running_ratio for layer in self.layers],
            "s",
            fillstyle="none",
            markersize=8,
            label="running / evaluation",
        )
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter("{x:.2f}")
        axis.yaxis.set_minor_formatter("{x:.2f}")
        axis.tick_params(axis="y", which="both", labelsize=8)
        every = -(-len(names) // 48)  # more names than that cannot be read
        axis.set_xticks(places[::every], names[::every], rotation=90, fontsize=7)
        axis.set_ylabel("ratio of variances")
        axis.set_title(self.model)
        axis.legend()
        save_figure(figure, Path(picture))


def _distance(layer: LayerShift) -> float:
    """|ln ratio| of the worse of the two; 0 where nothing is known."""
    ratios = [r for r in (layer.ratio, layer.running_ratio) if r > 0]
    return max((abs(math.log(ratio)) for ratio in ratios), default=0.0)


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 6)


def variance_shift(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    forward: Callable[[Any], Any] | None = None,
    batches: int | None = None,
    seed: int = 0,
) -> VarianceShift:
    """Measures how dropout shifts the variance of every BatchNorm's input.

    Li et al., CVPR 2019, section 3. For dropout → linear → BatchNorm the ratio is exactly
    1 + p / (1 - p) · (wᵀ diag(E[x²]) w) / (wᵀ Cov(x) w). The model comes out untouched.

    Args:
        model: any module with running statistics, however it uses them; frozen ones are left out.
        loader: batches of inputs, or tuples that begin with them; inputs are a tensor, a tuple
            (positional) or a mapping (keywords).
        forward: runs the model on a batch, where the batches are of another form.
        batches: largest number of batches; all by default.
        seed: seed of the masks.

    Raises:
        UserError: the loader is empty, part of the model is scripted, traced or exported, or it
            keeps running statistics in a way that cannot be measured.
    """
    run = partial(forward_batch, model, forward=forward)
    if unseen := unseen_modules(model):
        raise UserError(
            f"variance_shift: {unseen[0] or type(model).__name__} is scripted, traced or exported, "
            "so what it normalizes cannot be measured: measure the model before that"
        )
    with untouched(model) as snapshot, eagerly(model), torch.no_grad():
        snapshot.randomness.seed(seed)
        begin_training(model)
        modes = [(module, module.training) for module in model.modules()]
        norms = Normalizations(model)
        on, off, evaluation = Gathered(), Gathered(), Gathered()
        seen = 0
        for batch in islice(loader, batches):
            seen += 1
            for module, mode in modes:
                module.training = mode
            with norms.watching(on.see):
                run(batch)
            # All buffers as they were: what training remembers of this batch is not measured.
            snapshot.restore_buffers()
            if seen == 1:
                norms.refuse_unknown("variance_shift", run, batch)
            model.eval()
            # Dropout off, and upstream BatchNorm as in training: dropout is the only difference.
            with norms.watching(off.see, by_batch=True, among=norms.live):
                run(batch)
            with norms.watching(evaluation.see):
                run(batch)
        if not seen:
            raise UserError("variance_shift: the loader gave no batch")
        layers = [
            _shift(norm, *(gathered.moments[norm] for gathered in (on, off, evaluation)))
            for norm in on.moments
            # Not what runs in training only, as an auxiliary head does.
            if norm in norms.live and norm in off.moments and norm in evaluation.moments
        ]
    return VarianceShift(type(model).__name__, layers)


class Gathered:
    """Moments of what each normalization sees."""

    def __init__(self) -> None:
        self.moments: dict[RunningStatistics, PooledMoments] = {}

    def see(self, norm: RunningStatistics, x: Tensor, axis: int) -> None:
        self.moments.setdefault(norm, norm.moments()).update(x, axis)


def _shift(
    norm: RunningStatistics, on: PooledMoments, off: PooledMoments, evaluation: PooledMoments
) -> LayerShift:
    mean_on, variance_on = on.reduce()
    mean_off, variance_off = off.reduce()
    _, variance_now = evaluation.reduce()
    ratio = _ratio(variance_on, variance_off)
    running = _ratio(norm.variance.to(variance_now), variance_now)
    if not norm.learned:
        running = torch.full_like(running, torch.nan)
    drift = (mean_on - mean_off).abs() / variance_off.sqrt()
    return LayerShift(
        norm.path,
        _median(ratio),
        _median(running),
        _median(torch.where(ratio.isnan(), ratio, drift)),
        ratio.float().cpu(),
        running.float().cpu(),
        norm.learned,
    )


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """Channel by channel; NaN where a channel hardly varies, compared with the others."""
    dead = below <= 1e-10 * below.max()
    return torch.where(dead, torch.nan, above / below)


def _median(values: Tensor) -> float:
    return float(values.nanmedian())
