"""What the diagnostics say of a trained classifier: the figures in its card, and their command."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from zoo import registry
from zoo.core.text import counted
from zoo.data.base import ImageData
from zoo.data.images import LabeledImages, Split
from zoo.data.module import DataMissing
from zoo.diagnostics import calibration
from zoo.diagnostics.held_out import labeled_logits
from zoo.diagnostics.mc_dropout import Uncertainty, ensemble, is_sampled, mc_dropout, single
from zoo.diagnostics.trace.recorder import record
from zoo.diagnostics.variance_shift import variance_shift
from zoo.errors import UserError
from zoo.evaluation import calibrated
from zoo.evaluation.audit import audit_counts

BATCH = 500
# Of each way of predicting, in the card.
STATED = ("accuracy", "nll", "brier", "ece", "auroc_errors", "auroc_ood")


class Images:
    """A data module's images as batches of (normalized images, labels), in order, again and again.

    Args:
        data: any data module of labeled images.
        split: ``train`` (without augmentation), ``validation`` or ``test``.
        limit: how many images at most.
    """

    def __init__(self, data: LabeledImages, split: Split, limit: int | None = None) -> None:
        self.data, self.split, self.limit = data, split, limit

    def plain(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The same as uint8, not normalized."""
        left = self.limit
        for images, labels in self.data.plain(self.split):
            if left is not None and left <= len(labels):
                yield images[:left], labels[:left]
                return
            left = None if left is None else left - len(labels)
            yield images, labels

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in self.plain():
            yield self.data.normalize(images), labels

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


def ood_images(name: str, data: LabeledImages, limit: int | None = None) -> Tensor:
    """Loads OOD images (N, C, H, W), as a network trained on ``data`` would see them.

    Args:
        name: of the data set, ``digits`` or ``FashionMNIST``; case and underscores do not count.
        data: what the network was trained on: its size, channels and normalization are taken.
        limit: how many at most.

    Raises:
        UserError: no such data, the same data, or they are not available.
    """
    partners = {entry.out_of_distribution for entry in registry.DATA.values()} - {None}
    known = {_plain(partner): partner for partner in sorted(map(str, partners))}
    if _plain(name) not in known:
        raise UserError(f"--ood {name}: choose one of {', '.join(known)}, auto, none")
    entry = registry.DATA[known[_plain(name)]]
    kind = registry.load(entry.data)
    channels, height, width = data.used.input_shape
    if isinstance(data.used, kind):
        raise UserError(f"--ood {name}: the network was trained on those: choose other images")
    sized = "image_size" in inspect.signature(kind).parameters
    other: ImageData = kind(image_size=height) if sized else kind()
    other.prepare_data()
    images, _ = other.read(train=False)
    images = images[:limit]
    if images.shape[2:] != (height, width):
        shrunk = nn.functional.interpolate(
            images.float(), (height, width), mode="bilinear", antialias=True
        )
        images = shrunk.round().clamp(0, 255).byte()
    return data.normalize(images.expand(-1, channels, -1, -1))


def _plain(name: str) -> str:
    return name.lower().replace("_", "")


def find_ood_images(name: str, data: LabeledImages, limit: int | None) -> tuple[str, Tensor] | None:
    """Loads OOD images by name; ``auto`` takes the partner of the data, ``none`` nothing."""
    if name == "none":
        return None
    if name != "auto":
        return name, ood_images(name, data, limit)
    entry = registry.DATA.get(type(data.used).__name__)
    partner = entry.out_of_distribution if entry else None
    if partner is None:
        return None
    try:
        return partner, ood_images(partner, data, limit)
    except (DataMissing, UserError):  # not on this machine
        return None


Predictor = Callable[[Tensor], Uncertainty]


def predictors(
    model: nn.Module, samples: int, drop_path: bool, others: list[nn.Module], seed: int
) -> dict[str, Predictor]:
    """Lists the ways of predicting that a model allows, by name."""
    found: dict[str, Predictor] = {"one forward": lambda x: single(model, x)}
    if samples:
        found[f"MC dropout, {counted(samples, 'sample')}"] = lambda x: mc_dropout(
            model, x, samples, seed=seed, drop_path=drop_path
        )
    if others:
        everyone = [model, *others]
        found[f"ensemble of {len(everyone)}"] = lambda x: ensemble(everyone, x)
    return found


@dataclass
class Predictions:
    """Of N images, in their order."""

    probabilities: Tensor  # (N, K)
    entropy: Tensor  # (N,), the entropy in nats
    labels: Tensor  # (N,)


def predict(predictor: Predictor, batches: Iterable[tuple[Tensor, Tensor]]) -> Predictions:
    """Predicts batches of (normalized images, labels)."""
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
    predictor: Predictor, images: Images, ood: Tensor | None
) -> tuple[dict[str, float | None], Predictions]:
    """Scores of a predictor, ``auroc_ood`` among them, and what it predicted."""
    known = predict(predictor, images)
    scores = calibration.scores(known.probabilities, known.labels, known.entropy)
    scores["auroc_ood"] = None
    if ood is not None:
        nothing = torch.zeros(len(ood))
        batches = zip(torch.split(ood, BATCH), torch.split(nothing, BATCH), strict=True)
        unknown = predict(predictor, batches)
        entropy = torch.cat([known.entropy, unknown.entropy])
        is_ood = torch.cat([torch.zeros(len(known.entropy)), torch.ones(len(unknown.entropy))])
        scores["auroc_ood"] = calibration.auroc(entropy, is_ood)
    return scores, known


def has_dropout(model: nn.Module, example: Tensor) -> bool:
    """Returns whether training would drop anything but whole branches."""
    trace = record(model, (example,), mode="training")
    return any(is_sampled(node.dropout) for node in trace.dropouts if node.dropout)


def prove(task: Any, data: LabeledImages, limit: int | None = None) -> dict[str, Any]:
    """Measures audit, variance shift and uncertainty of a trained classifier, as JSON values.

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
    other = find_ood_images("auto", data, limit)
    rows = {}
    samples = 30 if has_dropout(network, example) else 0
    for name, predictor in predictors(network, samples, False, [], 0).items():
        scores, _ = uncertainty(predictor, images, other[1] if other else None)
        rows[name] = _rounded({key: scores[key] for key in STATED})
    return {
        "audit": audit_counts(task, data),
        "variance_shift": None
        if worst is None
        else {
            "layers": len(shift.layers),
            "module": worst.module,
            "ratio": round(worst.ratio, 4),
            "running_ratio": round(worst.running_ratio, 4),
        },
        "uncertainty": rows,
        "out_of_distribution": other[0] if other else None,
    }


def calibrate_and_measure(
    network: nn.Module, data: LabeledImages, limit: int | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Calibrates a classifier on its validation images, and measures on test images what it does.

    Args:
        network: gives logits.
        data: what it was trained on.
        limit: of the test images, at most.

    Returns:
        What ``config.json`` keeps under ``calibration``, and under ``proof.calibration``.

    Raises:
        UserError: the validation images allow no calibration.
    """
    fitted = calibrated.validation_fit(network, Images(data, "validation"))
    logits, labels = labeled_logits("calibration", network, Images(data, "test", limit))
    scores = calibrated.before_and_after(logits, labels, fitted)
    stated = {when: _rounded(values) for when, values in scores.items()}
    sets = calibrated.set_scores(logits, labels, fitted.aps[calibrated.STATED], [])
    stated["sets"] = _rounded({key: sets[key] for key in ("coverage", "size")})
    return fitted.as_config(), stated


def _rounded(scores: Mapping[str, float | None]) -> dict[str, float | None]:
    return {key: None if value is None else round(value, 4) for key, value in scores.items()}


def measure(task: Any, data: Any, stated: dict[str, Any]) -> dict[str, Any]:
    """Adds what the diagnostics say to what is stated of trained weights, and its calibration."""
    proof = prove(task, data)
    try:
        kept, proof["calibration"] = calibrate_and_measure(task.network, data)
    except UserError as error:
        rank_zero_info(f"published without calibration: {error}")
        return {**stated, "proof": proof}
    return {**stated, "calibration": kept, "proof": proof}
