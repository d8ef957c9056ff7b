"""Fits of which a claim reads the end alone, and the kind of dropout in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from zoo.data.images import LabeledImages
from zoo.study.fitting import Fitted, train
from zoo.tasks.image_classifier import ImageClassifier


def fit_once(
    network: nn.Module,
    data: LabeledImages,
    *,
    epochs: int,
    seed: int,
    lr: float = 1e-3,
    **options: Any,
) -> Fitted:
    """Trains as ``zoo.study.fitting.fit`` does, and validates after the last epoch only.

    On few images validation takes longer than training.
    """
    settings: dict[str, Any] = {"optimizer": "adamw", "weight_decay": 0.0, "warmup": 0.0}
    task = ImageClassifier(network, lr=lr, **{**settings, "schedule": "constant", **options})
    return train(task, data, epochs=epochs, seed=seed, check_val_every_n_epoch=epochs)


def replace_dropout(network: nn.Module, make: Callable[[float], nn.Module]) -> nn.Module:
    """Replaces each spatial dropout of a network, in place, by what ``make`` gives of its rate."""
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.Dropout2d):
            parent, _, own = name.rpartition(".")
            setattr(network.get_submodule(parent), own, make(module.p))
    return network
