"""How good generated images are, measured by a reference classifier."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoo import registry
from zoo.checkpoints import store
from zoo.checkpoints.load import load
from zoo.data.images import LabeledImages, Split
from zoo.data.normalization import Normalization
from zoo.errors import UserError
from zoo.evaluation.audit import audit_counts

BATCH = 500
NEIGHBORS = 3  # of the k-nearest-neighbor recall, as its authors have it
# Not further from the 1 of training: gan_fmnist's trousers came yet nearer at 1.3, and speckled.
TEMPERATURES = (0.9, 0.95, 1.0, 1.05, 1.1, 1.15, 1.2)


class _Features(nn.Identity):
    """Features as they are, for a metric that asks for a network."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features


def measure_samples(
    task: Any, data: LabeledImages, classifier: str, count: int = 10_000, seed: int = 0
) -> dict[str, Any]:
    """Measures agreement, Fréchet distance and recall of a class-conditional generator's samples.

    The Fréchet distance (Heusel et al. 2017, section 2) is that of the classifier's penultimate
    features, not of an Inception network's: compare it only with the floor, that of real test
    images against real training images.

    Args:
        task: with ``sample(labels, seed)`` and ``temperature``.
        data: what both were trained on.
        classifier: a checkpoint's name or folder.
        count: samples, as many of each class.
        seed: of the samples.

    Returns:
        ``agreement`` (the share of samples that are classified as the class asked for),
        ``agreement_by_class``, ``frechet``, ``frechet_floor``, ``recall`` (the share of real test
        images that lie among the samples: Kynkäänniemi et al. 2019, section 2), ``samples``, their
        ``temperature``, ``real`` (training images compared with) and ``classifier`` (its weights'
        sha256).

    Raises:
        UserError: the classifier has other classes.
    """
    reference = _reference(classifier, task)
    labels = torch.arange(count) % len(reference.data_info["classes"])
    features, said = _generated(reference, task, labels, seed)
    train, test = (_real_features(reference, data, split) for split in ("train", "test"))
    right = said == labels
    return {
        "agreement": right.float().mean().item(),
        "agreement_by_class": {
            name: right[labels == number].float().mean().item()
            for number, name in enumerate(reference.data_info["classes"])
        },
        "frechet": frechet(train, features),
        "frechet_floor": frechet(train, test),
        "recall": recall(test, features),
        "samples": count,
        "temperature": task.temperature,
        "real": len(train),
        "classifier": {
            "name": classifier,
            "sha256": store.read_config(store.folder_of(classifier))["weights_sha256"],
        },
    }


def temperatures(
    task: Any,
    data: LabeledImages,
    classifier: str,
    candidates: Sequence[float] = TEMPERATURES,
    count: int = 1000,
    seed: int = 1,
) -> list[float]:
    """Chooses a temperature for each class that brings samples nearest to the training images.

    A generator misses the rarer images of some classes more than those of others; where it does,
    latents that vary more than in training make up for some of it. Test images have no part in it.
    From the best of the candidates for all classes alike, one class after another takes the
    candidate that lowers the Fréchet distance most, until none does. (What brings each class by
    itself nearest brings all of them hardly nearer.)

    Args:
        task: a GAN; ``task.temperature = temperatures(...)`` makes its samples follow.
        data: what both were trained on.
        classifier: a checkpoint's name or folder, whose penultimate features the distance is of.
        candidates: what to choose from, for every class.
        count: samples of a class at each of them, from the same latents.
        seed: of the samples; another than ``measure_samples``', which must not see the chosen ones.

    Returns:
        One of the candidates for each class, in the classes' order.

    Raises:
        UserError: the classifier has other classes.
    """
    reference = _reference(classifier, task)
    classes = range(len(reference.data_info["classes"]))
    distance = _distance_to(_real_features(reference, data, "train"))
    labels = torch.arange(count * len(classes)) % len(classes)
    made = {
        candidate: _generated(reference, task, labels, seed, temperature=candidate)[0]
        for candidate in candidates
    }

    def reached(chosen: list[float]) -> float:
        together = torch.empty_like(made[chosen[0]])
        for label, candidate in enumerate(chosen):
            together[labels == label] = made[candidate][labels == label]
        return distance(together)

    chosen = min(([candidate] * len(classes) for candidate in candidates), key=reached)
    least, before = reached(chosen), float("inf")
    while least < before:
        before = least
        for label in classes:
            ways = [[*chosen[:label], candidate, *chosen[label + 1 :]] for candidate in candidates]
            chosen = min(ways, key=reached)
        least = reached(chosen)
    return chosen


def frechet(real: Tensor, other: Tensor) -> float:
    """Computes the squared Fréchet distance between two sets of features (N, F)."""
    return _distance_to(real)(other)


def _distance_to(real: Tensor) -> Callable[[Tensor], float]:
    """Of further features, the real ones' moments being taken once."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(_Features(real.shape[1]), reset_real_features=False)
    metric.update(real, real=True)

    def distance(other: Tensor) -> float:
        metric.reset()
        metric.update(other, real=False)
        return float(metric.compute())

    return distance


def recall(real: Tensor, made: Tensor) -> float:
    """Computes the share of real features (N, F) within a sample's third neighbor's distance."""
    radius = torch.cat(
        [
            torch.cdist(part, made).kthvalue(NEIGHBORS + 1).values  # the nearest is itself
            for part in torch.split(made, BATCH)
        ]
    )
    inside = [(torch.cdist(part, made) <= radius).any(1) for part in torch.split(real, BATCH)]
    return torch.cat(inside).float().mean().item()


def _reference(classifier: str, task: Any) -> Any:
    reference = load(classifier)
    if reference.data_info["classes"] != task.data_info["classes"]:
        raise UserError(
            f"{classifier} has the classes {reference.data_info['classes']}, not "
            f"{task.data_info['classes']}"
        )
    return reference


def _real_features(reference: Any, data: LabeledImages, split: Split) -> Tensor:
    return torch.cat(
        [_seen(reference, data.normalize(images))[0] for images, _ in data.plain(split)]
    )


def _generated(
    reference: Any, task: Any, labels: Tensor, seed: int, **options: float
) -> tuple[Tensor, Tensor]:
    """Of generated images: features (B, F) and predicted classes (B,)."""
    seen = [
        _seen(
            reference,
            _normalize(reference, task.sample(part, seed=seed * 1_000_003 + number, **options)),
        )
        for number, part in enumerate(torch.split(labels, BATCH))
    ]
    features, said = (torch.cat(tensors) for tensors in zip(*seen, strict=True))
    return features, said


def _normalize(reference: Any, images: Tensor) -> Tensor:
    return Normalization(reference.data_info["mean"], reference.data_info["std"])(images.cpu())


@torch.inference_mode()
def _seen(reference: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Penultimate features (B, F) and the class (B,)."""
    network = reference.network
    features = network.forward_head(network.forward_features(images), pre_logits=True)
    return features, network.get_classifier()(features).argmax(1)


def reference_classifier(data: Any) -> str:
    """Finds the shipped classifier that measures generated images of a data set.

    Raises:
        UserError: none does.
    """
    entry = registry.DATA.get(type(data.used).__name__)
    if entry is None or entry.reference is None:
        raise UserError(f"no shipped classifier measures generated images of {data.name}")
    return entry.reference


def measure(task: Any, data: Any, stated: dict[str, Any]) -> dict[str, Any]:
    """Adds the reference classifier's measurements and the audit's counts to what is stated."""
    judged = measure_samples(task, data, reference_classifier(data))
    metrics = {**stated["metrics"], "agreement": round(judged["agreement"], 6)}
    return {
        **stated,
        "metrics": metrics,
        "judged": judged,
        "proof": {"audit": audit_counts(task, data)},
    }
