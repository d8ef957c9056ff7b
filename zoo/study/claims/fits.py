"""Fits of which a claim reads the end alone, and the kind of dropout in them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from zoo.data.images import LabeledImages
from zoo.study.fitting import Fitted, fit


def fit_once(
    network: nn.Module, data: LabeledImages, *, epochs: int, seed: int, **options: Any
) -> Fitted:
    """Trains as ``fit`` does, and validates after the last epoch only.

    On few images validation takes longer than training.
    """
    return fit(network, data, epochs=epochs, seed=seed, validate_every=epochs, **options)


def replace_dropout(network: nn.Module, make: Callable[[float], nn.Module]) -> nn.Module:
    """Replaces each spatial dropout of a network, in place, by what ``make`` gives of its rate."""
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.Dropout2d):
            parent, _, own = name.rpartition(".")
            setattr(network.get_submodule(parent), own, make(module.p))
    return network
