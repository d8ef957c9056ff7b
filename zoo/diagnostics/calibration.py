"""How far predicted probabilities can be trusted: proper scores, calibration error, pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from zoo.core.pictures import save_figure


def entropy(probabilities: Tensor, dim: int = 1) -> Tensor:
    """Of distributions along ``dim``, in nats."""
    return torch.special.entr(probabilities).sum(dim)


def nll(probabilities: Tensor, labels: Tensor) -> float:
    """Mean negative log-likelihood of the labels, in nats; probabilities (B, K), labels (B,)."""
    picked = probabilities.gather(1, labels[:, None]).double()
    return float(-picked.clamp_min(1e-12).log().mean())


def brier(probabilities: Tensor, labels: Tensor) -> float:
    """Squared distance between probabilities (B, K) and the one-hot label, 0 to 2 (Brier 1950)."""
    hot = torch.nn.functional.one_hot(labels, probabilities.shape[1])
    return float((probabilities.double() - hot).square().sum(1).mean())


@dataclass(frozen=True)
class Bin:
    """Predictions whose confidence lies in ``(low, high]``."""

    low: float
    high: float
    count: int
    confidence: float  # mean
    accuracy: float


def reliability(probabilities: Tensor, labels: Tensor, bins: int = 15) -> list[Bin]:
    """Confidence against accuracy in bins of equal width; empty ones are left out.

    The bins are open below and closed above, so that a confidence of exactly 1 is counted, in the
    last one.
    """
    confidence, predicted = probabilities.double().max(1)
    right = (predicted == labels).double()
    index = (confidence * bins).ceil().long().clamp(1, bins) - 1
    found = []
    for i in range(bins):
        inside = index == i
        if count := int(inside.sum()):
            found.append(
                Bin(
                    i / bins,
                    (i + 1) / bins,
                    count,
                    float(confidence[inside].mean()),
                    float(right[inside].mean()),
                )
            )
    return found


def ece(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Expected calibration error: |accuracy - confidence|, averaged over bins by their counts.

    Guo et al., ICML 2017, section 2, with their 15 bins.
    """
    found = reliability(probabilities, labels, bins)
    return sum(b.count * abs(b.accuracy - b.confidence) for b in found) / len(labels)


def auroc(scores: Tensor, positive: Tensor) -> float | None:
    """How often a positive scores above a negative, ties as a half; None where one kind lacks."""
    from torchmetrics.functional.classification import binary_auroc

    positive = positive.long()
    if positive.min() == positive.max():
        return None
    # Ranks: exact, and the scores need not lie between 0 and 1.
    ranks = torch.unique(scores.double(), return_inverse=True)[1].double()
    return float(binary_auroc(ranks / ranks.max().clamp_min(1), positive))


def scores(
    probabilities: Tensor, labels: Tensor, uncertainty: Tensor | None = None
) -> dict[str, float | None]:
    """accuracy, nll (nats), brier, ece, and auroc_errors: does uncertainty find the mistakes?

    Args:
        probabilities: (B, K).
        labels: (B,).
        uncertainty: (B,), the more the less certain; the entropy by default.
    """
    wrong = probabilities.argmax(1) != labels
    doubt = entropy(probabilities) if uncertainty is None else uncertainty
    return {
        "accuracy": float((~wrong).double().mean()),
        "nll": nll(probabilities, labels),
        "brier": brier(probabilities, labels),
        "ece": ece(probabilities, labels),
        "auroc_errors": auroc(doubt, wrong),
    }


def draw_reliability(curves: dict[str, list[Bin]], picture: Path, title: str = "") -> None:
    """Accuracy over confidence for each of ``curves``; the area of a dot is its share."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], color="grey", linestyle=":", label="calibrated")
    for label, found in curves.items():
        total = sum(b.count for b in found)
        (line,) = axis.plot([b.confidence for b in found], [b.accuracy for b in found], label=label)
        axis.scatter(
            [b.confidence for b in found],
            [b.accuracy for b in found],
            s=[8 + 300 * b.count / total for b in found],
            color=line.get_color(),
            alpha=0.6,
        )
    axis.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.02), title=title)
    axis.legend(loc="upper left")
    save_figure(figure, picture)


def extremes(probabilities: Tensor, count: int = 8) -> tuple[list[int], list[int]]:
    """Positions of the least and of the most certain of (N, K) probabilities, by entropy."""
    order = entropy(probabilities).argsort().tolist()
    return order[::-1][:count], order[:count]


def draw_certainty(
    images: Mapping[int, Tensor] | Tensor,
    probabilities: Tensor,
    labels: Tensor,
    classes: Sequence[str],
    picture: Path,
    count: int = 8,
) -> None:
    """The least and the most certain images, by entropy, with what was said of each.

    Args:
        images: uint8 (C, H, W) by position; those of ``extremes`` are needed.
        probabilities: (B, K).
        labels: (B,).
        classes: names of the K classes.
        picture: a PNG.
        count: of images in a row.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    least, most = extremes(probabilities, count)
    rows = [("least certain", least), ("most certain", most)]
    figure = Figure(figsize=(1.5 * count, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, count, squeeze=False)
    for row, (word, chosen) in zip(axes, rows, strict=True):
        for axis in row:
            axis.set_axis_off()
        for axis, index in zip(row, chosen, strict=False):
            image = images[index].permute(1, 2, 0).squeeze(-1)
            axis.imshow(image.numpy(), cmap="gray" if image.ndim == 2 else None)
            confidence, said = probabilities[index].max(0)
            truth = int(labels[index])
            text = f"{classes[int(said)]} {float(confidence):.0%}"
            if int(said) != truth:
                text += f"\n(it is {classes[truth]})"
            axis.set_title(text, fontsize=8, color="black" if int(said) == truth else "firebrick")
        row[0].text(
            -0.12, 0.5, word, transform=row[0].transAxes, rotation=90, va="center", ha="right"
        )
    save_figure(figure, picture)
