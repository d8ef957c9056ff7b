"""How good a generator's images are, in the eyes of a classifier that never saw them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from zoo import checkpoints
from zoo.data.images import LabelledImages
from zoo.errors import UserError

BATCH = 500
NEIGHBOURS = 3  # of the k-nearest-neighbour recall, as its authors have it


class _Features(nn.Identity):
    """Features as they are, for a metric that asks for a network."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features


def judge(
    task: Any, data: LabelledImages, classifier: str, count: int = 10_000, seed: int = 0
) -> dict[str, Any]:
    """Agreement, Fréchet distance and recall of a class-conditional generator's samples.

    The Fréchet distance (Heusel et al. 2017, section 2) is that of the classifier's penultimate
    features, not of an Inception network's: compare it with the floor beside it, real test images
    against real training images, and with nothing else.

    Args:
        task: with ``sample(labels, seed)`` and ``temperature``.
        data: what both were trained on.
        classifier: a checkpoint's name or folder.
        count: samples, as many of each class.
        seed: of the samples.

    Returns:
        ``agreement`` (the share of samples that the classifier gives the class asked for),
        ``agreement_by_class``, ``frechet``, ``frechet_floor``, ``recall`` (the share of real test
        images that lie among the samples: Kynkäänniemi et al. 2019, section 2), ``samples``, their
        ``temperature``, ``real`` (training images compared with) and ``classifier`` (its weights'
        sha256).

    Raises:
        UserError: the classifier knows other classes.
    """
    eye = checkpoints.load(classifier)
    if eye.data["classes"] != task.data["classes"]:
        raise UserError(f"{classifier} tells {eye.data['classes']}, not {task.data['classes']}")
    classes = len(eye.data["classes"])
    labels = torch.arange(count) % classes
    made = []
    for number, part in enumerate(torch.split(labels, BATCH)):
        made.append(_seen(eye, _normalise(eye, task.sample(part, seed=seed * 1_000_003 + number))))
    features, said = (torch.cat(tensors) for tensors in zip(*made, strict=True))
    real = {
        split: torch.cat([_seen(eye, data.normalise(images))[0] for images, _ in data.plain(split)])
        for split in ("train", "test")
    }
    right = said == labels
    return {
        "agreement": right.float().mean().item(),
        "agreement_by_class": {
            name: right[labels == number].float().mean().item()
            for number, name in enumerate(eye.data["classes"])
        },
        "frechet": frechet(real["train"], features),
        "frechet_floor": frechet(real["train"], real["test"]),
        "recall": recall(real["test"], features),
        "samples": count,
        "temperature": task.temperature,
        "real": len(real["train"]),
        "classifier": {
            "name": classifier,
            "sha256": checkpoints.read_config(checkpoints.folder_of(classifier))["weights_sha256"],
        },
    }


def frechet(real: Tensor, other: Tensor) -> float:
    """Between two sets of features (N, F): squared, as usual."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(_Features(real.shape[1]))
    metric.update(real, real=True)
    metric.update(other, real=False)
    return float(metric.compute())


def recall(real: Tensor, made: Tensor) -> float:
    """The share of real features (N, F) within a sample's distance to its third nearest sample."""
    radius = torch.cat(
        [
            torch.cdist(part, made).kthvalue(NEIGHBOURS + 1).values  # the nearest is itself
            for part in torch.split(made, BATCH)
        ]
    )
    inside = [(torch.cdist(part, made) <= radius).any(1) for part in torch.split(real, BATCH)]
    return torch.cat(inside).float().mean().item()


def _normalise(eye: Any, images: Tensor) -> Tensor:
    mean = torch.tensor(eye.data["mean"])[:, None, None]
    std = torch.tensor(eye.data["std"])[:, None, None]
    return (images.cpu() - mean) / std


@torch.inference_mode()
def _seen(eye: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Penultimate features (B, F) and the class (B,)."""
    network = eye.network
    features = network.forward_head(network.forward_features(images), pre_logits=True)
    return features, network.get_classifier()(features).argmax(1)
