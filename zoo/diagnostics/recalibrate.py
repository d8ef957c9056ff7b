"""BatchNorm's running statistics, estimated anew for the weights as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from zoo.core.modes import evaluating
from zoo.diagnostics import calibration
from zoo.diagnostics.forward import forward_batch, logits_in
from zoo.diagnostics.moments import PooledMoments, is_live
from zoo.diagnostics.trace.operations import tensors_in
from zoo.diagnostics.trace.snapshot import begin_training, eagerly, untouched
from zoo.errors import UserError


@torch.no_grad()
def estimate_running_statistics(
    model: nn.Module,
    batches: Iterable[Any],
    forward: Callable[[Any], Any] | None = None,
    norms: list[_BatchNorm] | None = None,
) -> int:
    """Replaces every running mean and variance by that of the batches' activations, in place.

    Each BatchNorm normalizes by the batch while the statistics of its input are gathered, as in
    training, but dropout is off: with dropout on, the statistics would remember a variance that
    evaluation never sees (Li et al., CVPR 2019; torch's ``update_bn`` leaves it on). Frozen
    BatchNorm (one whose ``train()`` keeps it in evaluation mode) and parameters are left alone,
    modes come back as they were. Works under DDP: the moments are pooled over the processes.

    Args:
        model: any module; without BatchNorm nothing is done.
        batches: what ``forward`` takes.
        forward: runs the model on a batch; the model itself by default.
        norms: which to renew; by default all that go into training mode.

    Returns:
        The number of BatchNorm layers renewed.
    """
    if norms is None:
        norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    with evaluating(model):
        norms = [norm for norm in norms if is_live(norm.train())]  # a frozen one refuses
        gathered = {norm: PooledMoments() for norm in norms}
        before = [[buffer.clone() for buffer in norm.buffers()] for norm in norms]
        hooks = [norm.register_forward_pre_hook(_gather(gathered[norm])) for norm in norms]
        try:
            if norms:
                for batch in batches:
                    (forward or model)(batch)
        finally:
            for hook in hooks:
                hook.remove()
            for norm, saved in zip(norms, before, strict=True):
                for buffer, value in zip(norm.buffers(), saved, strict=True):
                    buffer.copy_(value)
    renewed = [norm for norm in norms if gathered[norm].count]
    for norm in renewed:
        _remember(norm, *gathered[norm].reduce())
    return len(renewed)


@dataclass(frozen=True)
class Recalibration:
    """What ``recalibrate`` did; ``before`` and ``after`` are scores on the held-out data."""

    layers: int
    passes: int  # over the loader
    before: dict[str, float | None] | None = None
    after: dict[str, float | None] | None = None

    def __str__(self) -> str:
        lines = [f"{self.layers} BatchNorm layers re-estimated in {self.passes} passes"]
        if self.before is not None and self.after is not None:
            lines += [f"{'held-out data':<14}{'before':>10}{'after':>10}"]
            for name, before in self.before.items():
                cells = ["-" if v is None else f"{v:.4f}" for v in (before, self.after[name])]
                lines.append(f"{name:<14}{cells[0]:>10}{cells[1]:>10}")
            lines.append(
                "The statistics are right now; whether the predictions are better is seen above."
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
    batches, and a layer is settled only when those before it are. So the loader is gone through
    once, and then again until nothing moves. Under DDP all processes pool what they have seen.

    Args:
        model: its BatchNorm modules are renewed, but for frozen ones; parameters, modes, momentum
            and ``num_batches_tracked`` stay as they are.
        loader: training data, without augmentation where evaluation has none; a tensor, a tuple
            whose first item is the input, or a dict of arguments at a time.
        held_out: (inputs, labels), to see what it does to accuracy, NLL and ECE.
        forward: runs the model on a batch, where the batches are of another form.
        passes: over the loader; by default until nothing moves, one more than there are layers at
            most; three where the loader gives other data each time (random augmentation).

    Raises:
        UserError: there is nothing to renew, or the loader is empty.
    """
    batches = list(loader) if iter(loader) is loader else loader  # an iterator goes round once
    run = forward or (lambda batch: forward_batch(model, batch))
    norms = _live_norms(model)
    if not norms:
        raise UserError("recalibrate: the model has no BatchNorm with running statistics to renew")
    if next(iter(batches), None) is None:
        raise UserError("recalibrate: the loader gave no batch")
    if passes is not None and passes < 1:
        raise UserError(f"recalibrate: passes is {passes}: it must be at least 1")
    before = _scores(model, held_out, run)
    with eagerly(model):
        # A first estimate for all layers at once, which leaves little to settle.
        estimate_running_statistics(model, _large_enough(batches), run, norms)
        done, most = 1, passes if passes is not None else len(norms) + 1
        gathered: dict[_BatchNorm, PooledMoments] = {}
        moved: dict[_BatchNorm, float] = {}
        while done < most and (not moved or max(moved.values()) > 1e-6):
            done += 1
            moved, gathered = _settle(model, norms, batches, run)
            # Nothing that is renewed stands before the first layer: if it moves the second time,
            # the loader gives other data each time, and further passes would not settle anything.
            if done > 2 and next(iter(moved.values())) > 1e-5:
                break
        for norm, moments in gathered.items():
            _remember(norm, *moments.reduce())
    renewed = len(gathered) if gathered else len(norms)
    return Recalibration(renewed, done, before, _scores(model, held_out, run))


def _live_norms(model: nn.Module) -> list[_BatchNorm]:
    with untouched(model):
        begin_training(model)
        return [m for m in model.modules() if isinstance(m, _BatchNorm) and is_live(m)]


@torch.no_grad()
def _settle(
    model: nn.Module, norms: list[_BatchNorm], batches: Iterable[Any], run: Callable[[Any], Any]
) -> tuple[dict[_BatchNorm, float], dict[_BatchNorm, PooledMoments]]:
    """One pass in evaluation mode: each layer is given the moments of all the data before it.

    It then normalizes as it would in training by one huge batch, by the variance of the values.

    Returns:
        How far the statistics of each layer have moved, in deviations, and the moments; of the
        layers that ran, in the order in which they ran.
    """
    gathered: dict[_BatchNorm, PooledMoments] = {}

    def gather(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, _BatchNorm)
        gathered.setdefault(norm, PooledMoments()).update(inputs[0])

    hooks = [norm.register_forward_pre_hook(gather) for norm in norms]
    try:
        with evaluating(model):
            for batch in batches:
                run(batch)
    finally:
        for hook in hooks:
            hook.remove()
    moved: dict[_BatchNorm, float] = {}
    for norm, moments in gathered.items():
        mean, variance = moments.reduce(correction=0)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = variance + norm.eps
        shift = (mean - norm.running_mean).abs() / scale.sqrt()
        stretch = (variance - norm.running_var).abs() / scale
        moved[norm] = max(float(shift.max()), float(stretch.max()))
        _remember(norm, mean, variance)
    return moved, gathered


@torch.no_grad()
def _remember(norm: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)


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
            labels.append(batch[1].cpu())
    found = calibration.scores(torch.cat(probabilities), torch.cat(labels))
    return {name: found[name] for name in ("accuracy", "nll", "ece")}


def _large_enough(batches: Iterable[Any]) -> Iterable[Any]:
    """All batches but those of a single sample, which training mode cannot normalize."""
    for batch in batches:
        first = next(iter(tensors_in(batch)), None)
        if first is None or first.ndim == 0 or len(first) > 1:
            yield batch


def _gather(moments: PooledMoments) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    return lambda _, inputs: moments.update(inputs[0])
