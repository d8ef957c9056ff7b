"""Evaluation mode for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Sets evaluation mode, and afterwards restores the mode of every module.

    Modes are written, not set by ``train()``, which a frozen module refuses.
    """
    modes = [(module, module.training) for module in network.modules()]
    if any(training for _, training in modes):
        network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            if module.training != training:
                module.training = training
