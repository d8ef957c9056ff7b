"""How far predicted probabilities can be trusted: proper scores, calibration error, pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from zoo.core.pictures import save_figure


def entropy(probabilities: Tensor, dim: int = 1) -> Tensor:
    """Computes the entropy of distributions along ``dim``, in nats."""
    return torch.special.entr(probabilities).sum(dim)


def nll(probabilities: Tensor, labels: Tensor) -> float:
    """Computes the mean negative log-likelihood in nats; probabilities (B, K), labels (B,)."""
    picked = probabilities.gather(1, labels[:, None]).double()
    return float(-picked.clamp_min(1e-12).log().mean())


def brier(probabilities: Tensor, labels: Tensor) -> float:
    """Computes the squared distance of probabilities (B, K) to one-hot labels (Brier 1950)."""
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


def reliability(
    probabilities: Tensor, labels: Tensor, bins: int = 15, equal_mass: bool = False
) -> list[Bin]:
    """Computes confidence and accuracy in bins; empty ones are left out.

    Args:
        probabilities: (B, K).
        labels: (B,).
        bins: their number.
        equal_mass: whether each bin holds as many predictions as any other. By default bins are of
            equal width, open below and closed above, so that a confidence of exactly 1 is counted,
            in the last one.
    """
    confidence, predicted = probabilities.double().max(1)
    return _binned(confidence, predicted == labels, bins, equal_mass)


def _binned(confidence: Tensor, right: Tensor, bins: int, equal_mass: bool = False) -> list[Bin]:
    confidence, right = confidence.double(), right.double()
    if equal_mass:
        order = confidence.argsort(stable=True)
        parts = [part for part in order.tensor_split(bins) if len(part)]
        edges = [(float(confidence[part[0]]), float(confidence[part[-1]])) for part in parts]
        counts = [len(part) for part in parts]
        means = [(float(confidence[part].mean()), float(right[part].mean())) for part in parts]
    else:
        index = (confidence * bins).ceil().long().clamp(1, bins) - 1
        count = torch.bincount(index, minlength=bins)
        sums = torch.zeros(2, bins, dtype=torch.float64)
        sums[0].index_add_(0, index, confidence)
        sums[1].index_add_(0, index, right)
        filled = count.nonzero()[:, 0].tolist()
        edges = [(i / bins, (i + 1) / bins) for i in filled]
        counts = [int(count[i]) for i in filled]
        means = [(float(sums[0, i] / count[i]), float(sums[1, i] / count[i])) for i in filled]
    return [
        Bin(*edge, number, *mean) for edge, number, mean in zip(edges, counts, means, strict=True)
    ]


def _error(bins: list[Bin]) -> float:
    total = sum(b.count for b in bins)
    return sum(b.count * abs(b.accuracy - b.confidence) for b in bins) / total


def ece(probabilities: Tensor, labels: Tensor, bins: int = 15, equal_mass: bool = False) -> float:
    """Computes the calibration error: |accuracy - confidence|, averaged over bins by counts.

    Guo et al., ICML 2017, section 2, with their 15 bins of equal width.
    """
    return _error(reliability(probabilities, labels, bins, equal_mass))


def classwise_ece(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Computes the calibration error of each class's probability, averaged over the classes.

    Kull et al., NeurIPS 2019. Each of the K classes is a binary prediction of its own.
    """
    classes = range(probabilities.shape[1])
    return sum(_error(_binned(probabilities[:, k], labels == k, bins)) for k in classes) / len(
        classes
    )


def auroc(scores: Tensor, positive: Tensor) -> float | None:
    """Computes how often a positive scores above a negative, ties as a half; None without both."""
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
    """Scores predictions; ``auroc_errors`` says whether uncertainty finds the mistakes.

    Also accuracy, nll (nats), brier, and the calibration error in bins of equal width
    (``ece``), of equal mass, and by class.

    Args:
        probabilities: (B, K).
        labels: (B,).
        uncertainty: (B,), the more the less certain; the entropy by default.
    """
    wrong = probabilities.argmax(1) != labels
    uncertain = entropy(probabilities) if uncertainty is None else uncertainty
    return {
        "accuracy": float((~wrong).double().mean()),
        "nll": nll(probabilities, labels),
        "brier": brier(probabilities, labels),
        "ece": ece(probabilities, labels),
        "ece_equal_mass": ece(probabilities, labels, equal_mass=True),
        "classwise_ece": classwise_ece(probabilities, labels),
        "auroc_errors": auroc(uncertain, wrong),
    }


FEWEST_IN_A_BIN = 10  # of fewer the accuracy is chance: a picture leaves the bin out


def draw_reliability(curves: Mapping[str, list[Bin]], picture: Path, title: str = "") -> None:
    """Draws accuracy over confidence for each of ``curves``, and how many predictions a bin holds.

    Args:
        curves: bins by what predicts. Those of fewer than ten predictions are not drawn; they
            count for the calibration error in the legend.
        picture: a PNG.
        title: of the picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 6.2), layout="constrained")
    FigureCanvasAgg(figure)
    axis, counts = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    axis.plot([0, 1], [0, 1], color="gray", linestyle=":", label="calibrated")
    for label, found in curves.items():
        drawn = [b for b in found if b.count >= FEWEST_IN_A_BIN]
        (line,) = axis.plot(
            [b.confidence for b in drawn],
            [b.accuracy for b in drawn],
            marker="o",
            label=f"{label}: ECE {_error(found):.4f}",
        )
        counts.stairs(*_steps(found), color=line.get_color())
        for b in drawn:
            counts.annotate(
                f"{b.count:,}",
                ((b.low + b.high) / 2, b.count),
                fontsize=6,
                ha="center",
                va="bottom",
                color=line.get_color(),
            )
    axis.set(ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.02), title=title)
    counts.set(xlabel="confidence", ylabel="predictions", yscale="log")
    axis.legend(loc="upper left", fontsize=8)
    save_figure(figure, picture)


def _steps(bins: list[Bin]) -> tuple[list[int], list[float]]:
    """Counts and edges, with a count of 0 where bins are left out between others."""
    counts, edges = list[int](), [bins[0].low]
    for b in bins:
        if b.low > edges[-1] + 1e-9:
            counts.append(0)
            edges.append(b.low)
        counts.append(b.count)
        edges.append(b.high)
    return counts, edges


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
    """Draws the least and the most certain images, by entropy, with their predictions.

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
