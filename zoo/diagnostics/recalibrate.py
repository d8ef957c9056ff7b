"""BatchNorm's running statistics, estimated anew for the weights as they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from zoo.core.modes import evaluating
from zoo.core.text import counted
from zoo.diagnostics import calibration
from zoo.diagnostics.forward import forward_batch, logits_in
from zoo.diagnostics.held_out import labels_in
from zoo.diagnostics.moments import (
    Normalizations,
    PooledMoments,
    RunningStatistics,
    live_statistics,
)
from zoo.diagnostics.trace.operations import tensors_in
from zoo.diagnostics.trace.snapshot import (
    eagerly,
    keeps_running_statistics,
    unseen_modules,
    untouched,
)
from zoo.errors import UserError


@torch.no_grad()
def estimate_running_statistics(
    model: nn.Module, batches: Iterable[Any], forward: Callable[[Any], Any] | None = None
) -> int:
    """Replaces every running mean and variance by that of the batches' activations, in place.

    Each BatchNorm normalizes by the batch while the statistics of its input are gathered, as in
    training, but dropout is off: with dropout on, the statistics would remember a variance that
    evaluation never sees (Li et al., CVPR 2019; torch's ``update_bn`` leaves it on). Normalization
    that training leaves alone (one whose ``train()`` keeps it in evaluation mode) and parameters
    stay as they are, and so do modes. Works under DDP: the moments are pooled over the processes.

    Args:
        model: any module; without running statistics nothing is done.
        batches: what ``forward`` takes.
        forward: runs the model on a batch; the model itself by default.

    Returns:
        The number of layers renewed.

    Raises:
        UserError: the activations are not finite.
    """
    run = forward or model
    waiting = iter(batches)
    first = next(waiting, None)
    if first is None or not any(keeps_running_statistics(m) for m in model.modules()):
        return 0
    seen, norms = live_statistics(model, run, first)
    gathered = _gather(model, seen, norms, chain([first], waiting), run, by_batch=True)
    _remember(gathered)
    return len(gathered)


Gathered = dict[RunningStatistics, PooledMoments]
SETTLED = 1e-3  # deviations by which the statistics of a layer may move and count as settled
FAR = 0.5  # deviations from the first estimate, which errs by less in batches of any use


def _gather(
    model: nn.Module,
    seen: Normalizations,
    norms: list[RunningStatistics],
    batches: Iterable[Any],
    run: Callable[[Any], Any],
    by_batch: bool | None = None,
) -> Gathered:
    """The moments of what each normalization sees in evaluation mode, in order of their runs."""
    gathered: Gathered = {}
    wanted = set(norms)

    def gather(statistics: RunningStatistics, x: Tensor, axis: int) -> None:
        if statistics in wanted:
            gathered.setdefault(statistics, statistics.moments()).update(x, axis)

    with evaluating(model), seen.watching(gather, by_batch, wanted):
        for batch in batches:
            run(batch)
    return gathered


def _remember(gathered: Gathered) -> None:
    """Writes what was gathered, all or nothing."""
    found = {norm: moments.reduce() for norm, moments in gathered.items()}
    _check_finite(found)
    for norm, (mean, variance) in found.items():
        norm.remember(mean, variance)


def _check_finite(found: dict[RunningStatistics, tuple[Tensor, Tensor]]) -> None:
    for norm, (mean, variance) in found.items():
        if not (mean.isfinite().all() and variance.isfinite().all()):
            raise UserError(
                f"what {norm.path or 'the model'} normalizes is not finite (NaN or infinity in the "
                "data or the weights): the running statistics stay as they were"
            )


@dataclass(frozen=True)
class Recalibration:
    """What ``recalibrate`` did; ``before`` and ``after`` are scores on the held-out data."""

    layers: int
    passes: int  # over the loader
    before: dict[str, float | None] | None = None
    after: dict[str, float | None] | None = None
    waiting: int = 0  # layers that kept a first estimate, because those before still changed

    def __str__(self) -> str:
        layers = counted(self.layers, "BatchNorm layer")
        lines = [f"{layers} re-estimated in {counted(self.passes, 'pass', 'passes')}"]
        if self.waiting:
            lines.append(
                f"{counted(self.waiting, 'layer')} of them only by a first estimate, because those "
                "before were still changing: allow more passes, or give the same data each time"
            )
        if self.before is not None and self.after is not None:
            lines += [f"{'held-out data':<14}{'before':>10}{'after':>10}"]
            for name, before in self.before.items():
                cells = ["-" if v is None else f"{v:.4f}" for v in (before, self.after[name])]
                lines.append(f"{name:<14}{cells[0]:>10}{cells[1]:>10}")
            lines.append(
                "BatchNorm statistics updated. Compare the metrics before and after above."
            )
        return "\n".join(lines)


def recalibrate(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    held_out: Iterable[Any] | None = None,
    forward: Callable[[Any], Any] | None = None,
    passes: int | None = None,
) -> Recalibration:
    """Sets every running mean and variance to those of the data, with dropout off, in place.

    Repairs what dropout before BatchNorm has done to the running variance (Hendrycks & Gimpel
    2016, section 3; Li et al., CVPR 2019, section 5), and gives averaged weights statistics of
    their own. The result is that of one huge batch: mean and unbiased variance are pooled over all
    batches. A layer's statistics are final only when those of the layers before it are, so the
    loader is repeated until nothing changes. Under DDP all processes are pooled.

    Args:
        model: its running statistics are re-estimated, except frozen ones; parameters, modes,
            momentum and ``num_batches_tracked`` stay as they are.
        loader: training data, without augmentation where evaluation has none: inputs, or tuples
            that begin with them. Inputs are a tensor, a tuple (positional) or a mapping (keywords).
        held_out: (inputs, labels), to compare accuracy, NLL and ECE before and after.
        forward: runs the model on a batch, where the batches are of another form.
        passes: passes over the loader; by default until nothing changes, at most one more than
            there are layers; three if the loader's data are random (augmentation). One pass is a
            first estimate of all layers at once.

    Raises:
        UserError: there is nothing to re-estimate or it cannot be reached, the loader is empty, or
            the activations are not finite. The model is then as it was.
    """
    batches = list(loader) if iter(loader) is loader else loader  # an iterator goes round once
    run = partial(forward_batch, model, forward=forward)
    first = next(iter(batches), None)
    if first is None:
        raise UserError("recalibrate: the loader gave no batch")
    if passes is not None and passes < 1:
        raise UserError(f"recalibrate: passes is {passes}: it must be at least 1")
    if unseen := unseen_modules(model):
        raise UserError(
            f"recalibrate: {unseen[0] or type(model).__name__} is scripted, traced or exported, so "
            "its running statistics cannot be reached: recalibrate the model before that"
        )
    seen, norms = live_statistics(model, run, first)
    seen.refuse_unknown("recalibrate", run, first)
    if not norms:
        raise UserError(
            "recalibrate: the model has no BatchNorm with running statistics to re-estimate"
        )
    saved = [(norm, norm.mean.clone(), norm.variance.clone()) for norm in norms]
    before = _scores(model, held_out, run)
    try:
        with eagerly(model), torch.no_grad():
            renewed, done, waiting = _renew(model, seen, norms, batches, run, passes)
    except BaseException:
        for norm, mean, variance in saved:
            norm.remember(mean, variance)
        raise
    return Recalibration(renewed, done, before, _scores(model, held_out, run), waiting)


def _renew(
    model: nn.Module,
    seen: Normalizations,
    norms: list[RunningStatistics],
    batches: Iterable[Any],
    run: Callable[[Any], Any],
    passes: int | None,
) -> tuple[int, int, int]:
    """Layers renewed, passes that it took, and layers with no more than a first estimate."""
    # A first estimate for all layers at once, which leaves little to settle.
    estimated = _gather(model, seen, norms, _large_enough(batches), run, by_batch=True)
    _remember(estimated)
    done, most = 1, passes if passes is not None else len(norms) + 1
    gathered: Gathered = {}
    moved: dict[RunningStatistics, float] = {}
    waiting: Gathered = {}
    while done < most and (not moved or max(moved.values()) > 1e-6):
        done += 1
        gathered = _gather(model, seen, norms, batches, run)
        if not gathered:
            break
        moved, waiting = _settle(gathered, estimated)
        # Nothing that is renewed stands before the first layer: if it moves the second time,
        # the loader gives other data each time, and further passes would not settle anything.
        if done > 2 and next(iter(moved.values())) > 1e-5:
            break
    _remember(gathered | waiting)
    renewed = len(gathered or estimated)
    if not renewed:
        raise UserError(
            f"recalibrate: none of the {len(norms)} normalizations ran in evaluation mode, so "
            "nothing was re-estimated"
        )
    return renewed, done, len(waiting)


def _settle(
    gathered: Gathered, estimated: Gathered
) -> tuple[dict[RunningStatistics, float], Gathered]:
    """Gives each layer the moments of all the data before it.

    It then normalizes as it would in training by one huge batch, by the variance of the values.
    What the layers before it have changed grows from layer to layer in a deep network, until
    nothing is finite any more: a layer far from its first estimate waits for them to settle.

    Returns:
        How far the statistics of each layer have moved, in deviations; and the first estimates of
        the layers that wait.
    """
    found = {norm: moments.reduce(correction=0) for norm, moments in gathered.items()}
    first = {norm: moments.reduce(correction=0) for norm, moments in estimated.items()}
    moved: dict[RunningStatistics, float] = {}
    waiting: Gathered = {}
    settled = True  # all layers so far
    for norm in found:
        moved[norm] = _distance(norm, found[norm], (norm.mean, norm.variance))
        if not settled and norm in first and _distance(norm, found[norm], first[norm]) > FAR:
            waiting[norm], found[norm] = estimated[norm], first[norm]
        settled = settled and moved[norm] < SETTLED
    _check_finite(found)
    for norm, (mean, variance) in found.items():
        norm.remember(mean, variance)
    return moved, waiting


def _distance(
    norm: RunningStatistics, one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]
) -> float:
    """How far two pairs of mean and variance are from each other, in deviations of the first."""
    scale = one[1] + norm.eps
    shift = (one[0] - other[0]).abs() / scale.sqrt()
    stretch = (one[1] - other[1]).abs() / scale
    farthest = max(float(shift.max()), float(stretch.max()))
    return farthest if math.isfinite(farthest) else math.inf


def _scores(
    model: nn.Module, held_out: Iterable[Any] | None, run: Callable[[Any], Any]
) -> dict[str, float | None] | None:
    if held_out is None:
        return None
    probabilities, labels = [], []
    with untouched(model), torch.no_grad():
        model.eval()
        for batch in held_out:
            probabilities.append(logits_in(run(batch)).float().softmax(1).cpu())
            labels.append(labels_in(batch, "recalibrate: held_out").cpu())
    found = calibration.scores(torch.cat(probabilities), torch.cat(labels))
    return {name: found[name] for name in ("accuracy", "nll", "ece")}


def _large_enough(batches: Iterable[Any]) -> Iterable[Any]:
    """All batches but those of a single sample, which training mode cannot normalize."""
    for batch in batches:
        first = next(iter(tensors_in(batch)), None)
        if first is None or first.ndim == 0 or len(first) > 1:
            yield batch
