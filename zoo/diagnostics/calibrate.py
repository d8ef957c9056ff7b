"""Post-hoc calibration: a temperature, or a scale and a bias a class, fitted on held-out data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from zoo.core.text import counted
from zoo.diagnostics.calibration import scores
from zoo.diagnostics.forward import Forward
from zoo.diagnostics.held_out import labeled_logits
from zoo.errors import UserError

Scaling = Literal["temperature", "vector"]


@dataclass(frozen=True)
class Calibration:
    """Turns logits into calibrated probabilities; ``before`` and ``after`` are held-out scores.

    ``scale`` is what logits are multiplied by: one number, which is 1 over the temperature, or one
    a class. ``bias`` is added: one number a class, none for a temperature.
    """

    scale: tuple[float, ...]
    bias: tuple[float, ...] = ()
    images: int = 0  # it was fitted on
    before: dict[str, float | None] | None = None
    after: dict[str, float | None] | None = None

    @property
    def temperature(self) -> float | None:
        """What logits are divided by; None of vector scaling."""
        return 1 / self.scale[0] if len(self.scale) == 1 else None

    def logits(self, logits: Tensor) -> Tensor:
        """Scales logits (B, K); their softmax is calibrated."""
        scaled = logits * torch.tensor(self.scale, dtype=logits.dtype, device=logits.device)
        if self.bias:
            scaled = scaled + torch.tensor(self.bias, dtype=logits.dtype, device=logits.device)
        return scaled

    def __call__(self, logits: Tensor) -> Tensor:
        """Calibrated probabilities (B, K)."""
        return self.logits(logits).softmax(1)

    def __str__(self) -> str:
        fitted = (
            f"temperature {self.temperature:.4f}"
            if self.temperature is not None
            else f"a scale and a bias for each of {len(self.scale)} classes"
        )
        lines = [f"{fitted}, fitted on {counted(self.images, 'held-out image')}"]
        if self.before is not None and self.after is not None:
            lines.append(f"{'held-out':<14}{'before':>10}{'after':>10}")
            for name in ("accuracy", "nll", "brier", "ece"):
                lines.append(f"{name:<14}{self.before[name]:>10.4f}{self.after[name]:>10.4f}")
            lines.append("The calibration was fitted to these images: measure it on others.")
        return "\n".join(lines)


def calibrate(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    method: Scaling = "temperature",
    forward: Forward | None = None,
) -> Calibration:
    """Fits a temperature to a classifier's logits by maximum likelihood on held-out data.

    A temperature changes no prediction; vector scaling may. The model stays untouched and still
    returns logits: ``zoo.calibrate(model, loader)(model(x))`` are probabilities.

    Args:
        model: any classifier that gives logits (B, K).
        loader: held-out (inputs, labels), used neither for training nor for any choice.
        method: ``temperature`` (Guo et al., ICML 2017, section 4.2), or ``vector``, a scale and a
            bias a class (the same section).
        forward: runs the model on a batch, where the batches are of another form.

    Raises:
        UserError: there is no maximum (every image is right, or the logits do not depend on the
            labels), or the data are not a classifier's.
    """
    if method not in get_args(Scaling):
        raise UserError(f"calibrate: method is {method!r}: choose {' or '.join(get_args(Scaling))}")
    logits, labels = labeled_logits("calibrate", model, loader, forward)
    return fit_scaling(logits, labels, method)


def fit_scaling(logits: Tensor, labels: Tensor, method: Scaling = "temperature") -> Calibration:
    """Fits a scaling to logits (N, K) and labels (N,)."""
    if bool((logits.argmax(1) == labels).all()):
        raise UserError(
            f"calibrate: the model makes no mistake on {counted(len(labels), 'held-out image')}, "
            "so any confidence is too low and no temperature fits: give more of them"
        )
    scale = _maximize(logits, labels, torch.ones(1, dtype=torch.float64))
    if not float(scale) > 1e-6:
        raise UserError(
            "calibrate: the logits say nothing of the labels of "
            f"{counted(len(labels), 'held-out image')}, so no temperature fits: check that labels "
            "and classes agree"
        )
    bias: tuple[float, ...] = ()
    if method == "vector":
        classes = logits.shape[1]
        start = torch.cat([scale.expand(classes), torch.zeros(classes, dtype=torch.float64)])
        scale, found = torch.split(_maximize(logits, labels, start), classes)
        bias = tuple(found.tolist())
    fitted = Calibration(tuple(scale.tolist()), bias)
    before, after = scores(logits.softmax(1), labels), scores(fitted(logits), labels)
    return Calibration(fitted.scale, fitted.bias, len(labels), before, after)


def _maximize(logits: Tensor, labels: Tensor, start: Tensor) -> Tensor:
    """The most likely scale, or scales followed by biases: the likelihood is concave in both."""
    with torch.inference_mode(False), torch.enable_grad():
        # Clones: what inference mode has made takes part in no gradient.
        logits, labels = logits.double().clone(), labels.clone()
        found = start.clone().requires_grad_()
        optimizer = torch.optim.LBFGS(
            [found],
            max_iter=200,
            tolerance_grad=1e-9,
            tolerance_change=1e-12,
            line_search_fn="strong_wolfe",
        )

        def loss() -> Any:
            optimizer.zero_grad()
            many = len(found) > 1
            scale, bias = found.chunk(2) if many else (found, found.new_zeros(1))
            value = nn.functional.cross_entropy(logits * scale + bias, labels)
            value.backward()  # type: ignore[no-untyped-call]
            return value

        optimizer.step(loss)  # type: ignore[no-untyped-call]
    return found.detach()
