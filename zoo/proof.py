"""What the diagnostics say of a trained classifier: the figures in its card, and their command."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from zoo.data import Digits, FashionMNIST
from zoo.data.base import ImageData
from zoo.data.images import LabelledImages, Split
from zoo.data.module import DataMissing
from zoo.diagnostics import calibration
from zoo.diagnostics.audit import audit
from zoo.diagnostics.mc_dropout import Uncertainty, ensemble, is_sampled, mc_dropout, single
from zoo.diagnostics.trace import record
from zoo.diagnostics.variance_shift import variance_shift
from zoo.errors import UserError

STRANGERS = {"digits": Digits, "fashion_mnist": FashionMNIST}
BATCH = 500


class Images:
    """A data module's images as batches of (normalised images, labels), in order, again and again.

    Args:
        data: any data module of labelled images.
        split: ``train`` (without augmentation), ``validation`` or ``test``.
        limit: how many images at most.
    """

    def __init__(self, data: LabelledImages, split: Split, limit: int | None = None) -> None:
        self.data, self.split, self.limit = data, split, limit

    def plain(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The same as uint8, not normalised."""
        left = self.limit
        for images, labels in self.data.plain(self.split):
            if left is not None and left <= len(labels):
                yield images[:left], labels[:left]
                return
            left = None if left is None else left - len(labels)
            yield images, labels

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in self.plain():
            yield self.data.normalise(images), labels

    def pick(self, positions: list[int]) -> dict[int, Tensor]:
        """uint8 (C, H, W) of the images at some positions."""
        wanted, picked, start = set(positions), dict[int, Tensor](), 0
        for images, _ in self.plain():
            here = wanted.intersection(range(start, start + len(images)))
            picked |= {position: images[position - start] for position in here}
            start += len(images)
            if len(picked) == len(wanted):
                break
        return picked


def strangers(name: str, data: LabelledImages, limit: int | None = None) -> Tensor:
    """Images of other things (N, C, H, W), as a network trained on ``data`` would be given them.

    Args:
        name: ``digits`` or ``fashion_mnist``.
        data: what the network was trained on: its size, channels and normalisation are taken.
        limit: how many at most.

    Raises:
        UserError: no such data, the same data, or not to be had.
    """
    if name not in STRANGERS:
        raise UserError(f"--ood {name}: choose one of {', '.join(STRANGERS)}, auto, none")
    channels, height, width = data.used.input_shape
    kind = STRANGERS[name]
    if isinstance(data.used, kind):
        raise UserError(f"--ood {name}: the network was trained on those: choose other images")
    other: ImageData = Digits(image_size=height) if kind is Digits else FashionMNIST(fallback=None)
    other.prepare_data()
    images, _ = other.read(train=False)
    images = images[:limit]
    if images.shape[2:] != (height, width):
        shrunk = nn.functional.interpolate(
            images.float(), (height, width), mode="bilinear", antialias=True
        )
        images = shrunk.round().clamp(0, 255).byte()
    return data.normalise(images.expand(-1, channels, -1, -1))


def find_strangers(name: str, data: LabelledImages, limit: int | None) -> tuple[str, Tensor] | None:
    """``strangers`` by name; ``auto`` takes what there is, ``none`` nothing."""
    if name == "none":
        return None
    if name != "auto":
        return name, strangers(name, data, limit)
    for candidate, kind in STRANGERS.items():
        if not isinstance(data.used, kind):
            try:
                return candidate, strangers(candidate, data, limit)
            except (DataMissing, UserError):  # not on this machine
                continue
    return None


Predictor = Callable[[Tensor], Uncertainty]


def predictors(
    model: nn.Module, samples: int, drop_path: bool, others: list[nn.Module], seed: int
) -> dict[str, Predictor]:
    """The ways of predicting that a model allows, by name."""
    found: dict[str, Predictor] = {"one forward": lambda x: single(model, x)}
    if samples:
        found[f"MC dropout, {samples} samples"] = lambda x: mc_dropout(
            model, x, samples, seed=seed, drop_path=drop_path
        )
    if others:
        everyone = [model, *others]
        found[f"ensemble of {len(everyone)}"] = cast(Predictor, ensemble(everyone))
    return found


@dataclass
class Predictions:
    """Of N images, in their order."""

    probabilities: Tensor  # (N, K)
    doubt: Tensor  # (N,), the entropy in nats
    labels: Tensor  # (N,)


def predict(predictor: Predictor, batches: Iterable[tuple[Tensor, Tensor]]) -> Predictions:
    """One pass over batches of (normalised images, labels)."""
    parts, labels = [], []
    for images, truth in batches:
        parts.append(predictor(images))
        labels.append(truth)
    if not parts:
        raise UserError("there are no images to predict")
    return Predictions(
        torch.cat([part.mean for part in parts]),
        torch.cat([part.entropy for part in parts]),
        torch.cat(labels),
    )


def uncertainty(
    predictor: Predictor, images: Images, stranger_images: Tensor | None
) -> tuple[dict[str, float | None], Predictions]:
    """Scores of a predictor, ``auroc_ood`` among them, and what it predicted."""
    known = predict(predictor, images)
    scores = calibration.scores(known.probabilities, known.labels, known.doubt)
    scores["auroc_ood"] = None
    if stranger_images is not None:
        nothing = torch.zeros(len(stranger_images))
        batches = zip(torch.split(stranger_images, BATCH), torch.split(nothing, BATCH), strict=True)
        strange = predict(predictor, batches)
        doubt = torch.cat([known.doubt, strange.doubt])
        is_strange = torch.cat([torch.zeros(len(known.doubt)), torch.ones(len(strange.doubt))])
        scores["auroc_ood"] = calibration.auroc(doubt, is_strange)
    return scores, known


def has_dropout(model: nn.Module, example: Tensor) -> bool:
    """Whether training would drop anything but whole branches."""
    trace = record(model, (example,), mode="training")
    return any(is_sampled(node.dropout) for node in trace.dropouts if node.dropout)


def audited(task: Any, data: Any) -> dict[str, int]:
    """How many findings of each severity the audit has of a task as its recipe trains it."""
    report = audit(
        task.network.eval(),
        *task.example_inputs(data),
        batch_size=data.used.batch_size,
        optimizer=task.make_optimizer(),
    )
    return {
        severity: len([f for f in report.findings if f.severity == severity])
        for severity in ("error", "warning", "info")
    }


def prove(task: Any, data: LabelledImages, limit: int | None = None) -> dict[str, Any]:
    """Audit, variance shift and uncertainty of a trained classifier, as JSON values.

    Args:
        task: with ``network``.
        data: what it was trained on.
        limit: images of each kind, at most; the shift is measured on as many training images,
            2,048 by default.
    """
    network = task.network.eval()
    example = data.example_input()
    shift = variance_shift(network, Images(data, "train", limit or 2048))
    worst = shift.worst
    images = Images(data, "test", limit)
    other = find_strangers("auto", data, limit)
    rows = {}
    samples = 30 if has_dropout(network, example) else 0
    for name, predictor in predictors(network, samples, False, [], 0).items():
        scores, _ = uncertainty(predictor, images, other[1] if other else None)
        rows[name] = {key: None if v is None else round(v, 4) for key, v in scores.items()}
    return {
        "audit": audited(task, data),
        "variance_shift": None
        if worst is None
        else {
            "layers": len(shift.layers),
            "module": worst.module,
            "ratio": round(worst.ratio, 4),
            "running_ratio": round(worst.running_ratio, 4),
        },
        "uncertainty": rows,
        "strangers": other[0] if other else None,
    }
