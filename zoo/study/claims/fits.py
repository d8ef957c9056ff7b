"""Fits of which a claim reads the end alone, and what it changes and measures in a network."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from zoo.data.images import LabeledImages
from zoo.study.fitting import Fitted, fit


def fit_once(
    network: nn.Module, data: LabeledImages, *, epochs: int, seed: int, **options: Any
) -> Fitted:
    """Trains as ``fit`` does, and validates after the last epoch only.

    On few images validation takes longer than training.
    """
    return fit(network, data, epochs=epochs, seed=seed, validate_every=epochs, **options)


def measured(network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """The mean cross-entropy (nats) of batches of images and labels, and the accuracy."""
    with torch.no_grad():
        pairs = [(network(images), labels) for images, labels in batches]
    outputs, labels = (torch.cat(each) for each in zip(*pairs, strict=True))
    correct = outputs.argmax(1) == labels
    return float(nn.functional.cross_entropy(outputs, labels)), float(correct.float().mean())


def replace_dropout(network: nn.Module, make: Callable[[float], nn.Module]) -> nn.Module:
    """Replaces each spatial dropout of a network, in place, by what ``make`` gives of its rate."""
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.Dropout2d):
            parent, _, own = name.rpartition(".")
            setattr(network.get_submodule(parent), own, make(module.p))
    return network
