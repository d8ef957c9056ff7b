"""What the diagnostics say of a trained classifier: the figures in its card, and their command."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from zoo.data import Digits, FashionMNIST
from zoo.data.base import DataMissing, ImageData
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
        data: set up already.
        split: ``train`` (without augmentation), ``validation`` or ``test``.
        limit: how many images at most.
    """

    def __init__(self, data: ImageData, split: str, limit: int | None = None) -> None:
        stage = "test" if split == "test" else "fit"
        data.setup(stage)
        sets = {"train": data._train, "validation": data._validation, "test": data._test}
        chosen = sets[split]
        assert chosen is not None
        self.data = data
        self.images, self.labels = chosen[0][:limit], chosen[1][:limit]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, len(self.labels), BATCH):
            chosen = slice(start, start + BATCH)
            yield self.data.normalise(self.images[chosen]), self.labels[chosen]


def strangers(name: str, data: ImageData, limit: int | None = None) -> Tensor:
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


def find_strangers(name: str, data: ImageData, limit: int | None) -> tuple[str, Tensor] | None:
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


def predict(
    predictor: Predictor, batches: Iterator[Tensor] | list[Tensor]
) -> tuple[Tensor, Tensor]:
    """Mean probabilities (N, K) and their entropy (N,)."""
    parts = [predictor(batch) for batch in batches]
    return torch.cat([p.mean for p in parts]), torch.cat([p.entropy for p in parts])


def uncertainty(
    predictor: Predictor, images: Images, stranger_images: Tensor | None
) -> tuple[dict[str, float | None], Tensor]:
    """Scores of a predictor, ``auroc_ood`` among them, and its probabilities (N, K)."""
    probabilities, doubt = predict(predictor, [batch for batch, _ in images])
    scores = calibration.scores(probabilities, images.labels, doubt)
    scores["auroc_ood"] = None
    if stranger_images is not None:
        _, strange = predict(predictor, list(torch.split(stranger_images, BATCH)))
        positive = torch.cat([torch.zeros(len(doubt)), torch.ones(len(strange))])
        scores["auroc_ood"] = calibration.auroc(torch.cat([doubt, strange]), positive)
    return scores, probabilities


def has_dropout(model: nn.Module, example: Tensor) -> bool:
    """Whether training would drop anything but whole branches."""
    trace = record(model, (example,), mode="training")
    return any(is_sampled(node.dropout) for node in trace.dropouts if node.dropout)


def prove(task: Any, data: ImageData, limit: int | None = None) -> dict[str, Any]:
    """Audit, variance shift and uncertainty of a trained classifier, as JSON values.

    Args:
        task: with ``network``.
        data: what it was trained on.
        limit: images of each kind, at most; the shift is measured on as many training images,
            2,048 by default.
    """
    network = task.network.eval()
    example = data.example_input()
    report = audit(
        network, example, batch_size=data.used.batch_size, optimizer=task.make_optimizer()
    )
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
        "audit": {
            severity: len([f for f in report.findings if f.severity == severity])
            for severity in ("error", "warning", "info")
        },
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
