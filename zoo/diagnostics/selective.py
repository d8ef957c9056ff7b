"""Selective prediction: which answers to keep, and what error remains among those kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.core.pictures import save_figure
from zoo.diagnostics.forward import Forward
from zoo.diagnostics.held_out import labeled_logits

# Not 1: where one class alone is above the mean, it is half of the 1-norm, whatever the logits.
POWERS = range(2, 11)
STEP = 2.0**-20  # of a confidence: what differs by less differs by rounding


@dataclass(frozen=True)
class Confidence:
    """How far each answer can be trusted, from logits (B, K): the higher, the more.

    With a number ``p`` it is MaxLogit-pNorm (Cattelan & Silva, UAI 2024): the largest of the
    centered logits, divided by their p-norm, in steps of a millionth: of two classes all answers
    have the same, and rounding must not rank them. Without a number it is the maximum probability.
    The values rank answers; they are not probabilities.
    """

    p: int | None = None

    @property
    def name(self) -> str:
        return "maximum probability" if self.p is None else f"MaxLogit-pNorm, p = {self.p}"

    def __call__(self, logits: Tensor) -> Tensor:
        """Of each row (B,)."""
        if self.p is None:
            return logits.softmax(1).amax(1)
        centered = logits.double() - logits.double().mean(1, keepdim=True)
        norm = torch.linalg.vector_norm(centered, self.p, 1)
        share = centered.amax(1) / norm.clamp_min(torch.finfo(torch.float64).tiny)
        return ((share / STEP).round() * STEP).float()  # exact: a share has at most 20 bits


def confidence(
    model: nn.Module, loader: Iterable[Any], *, forward: Forward | None = None
) -> Confidence:
    """Chooses the confidence that detects a classifier's errors best on held-out data.

    Args:
        model: any classifier that gives logits (B, K); it stays untouched.
        loader: held-out (inputs, labels).
        forward: runs the model on a batch, where the batches are of another form.

    Returns:
        MaxLogit-pNorm with the p of least area under the risk-coverage curve, or the maximum
        probability where no p is better.

    Raises:
        UserError: the data are not a classifier's.
    """
    return choose_confidence(*labeled_logits("confidence", model, loader, forward))


def choose_confidence(logits: Tensor, labels: Tensor) -> Confidence:
    """Chooses by logits (N, K) and labels (N,)."""
    right = logits.argmax(1) == labels
    # The first of the best: of equals the maximum probability, then the smallest p.
    return min((Confidence(), *map(Confidence, POWERS)), key=lambda one: aurc(one(logits), right))


def risk_coverage(confidence: Tensor, right: Tensor) -> Tensor:
    """Computes the error rate among the 1, 2, … N most confident predictions.

    Answers of equal confidence count as one after the other in random order, on average.

    Args:
        confidence: (N,).
        right: bool (N,).

    Returns:
        Risks (N,), float64.
    """
    order = confidence.argsort(descending=True, stable=True)
    wrong = (~right[order]).double()
    _, group = torch.unique_consecutive(confidence[order], return_inverse=True)
    count = torch.bincount(group).double()
    mean = torch.zeros_like(count).index_add_(0, group, wrong) / count
    return mean[group].cumsum(0) / torch.arange(1, len(wrong) + 1, dtype=torch.float64)


def aurc(confidence: Tensor, right: Tensor) -> float:
    """Averages the risk over all coverages: the area under the curve (Geifman et al. 2019)."""
    return float(risk_coverage(confidence, right).mean())


def coverage_at_risk(confidence: Tensor, right: Tensor, risk: float) -> float:
    """Finds the largest share of answers that a threshold keeps with ``risk`` at most."""
    order = confidence.argsort(descending=True, stable=True)
    ranked = confidence[order]
    # A threshold keeps answers of equal confidence together.
    last = torch.cat([ranked[1:] != ranked[:-1], torch.ones(1, dtype=torch.bool)])
    kept = (last & (risk_coverage(confidence, right) <= risk)).nonzero()
    return (int(kept.max()) + 1) / len(right) if len(kept) else 0.0


def draw_risk_coverage(curves: Mapping[str, Tensor], picture: Path, title: str = "") -> None:
    """Draws risk over coverage for each of ``curves``, as ``risk_coverage`` gives them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    for name, risk in curves.items():
        coverage = torch.arange(1, len(risk) + 1) / len(risk)
        axis.plot(coverage, risk, label=f"{name}: AURC {float(risk.mean()):.4f}")
    axis.set(xlabel="coverage", ylabel="risk (error rate)", xlim=(0, 1), title=title)
    axis.set_ylim(bottom=0)
    axis.legend(loc="upper left")
    save_figure(figure, picture)
