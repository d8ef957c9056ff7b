"""Evaluation mode for a while."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(network: nn.Module, modules: Sequence[nn.Module] | None = None) -> Iterator[None]:
    """Evaluation mode, and afterwards every module in the mode it was in.

    Modes are written, not set by ``train()``, which a frozen module refuses.

    Args:
        network: what is evaluated.
        modules: its modules, from a caller that comes by often and has listed them once.
    """
    modules = list(network.modules()) if modules is None else modules
    modes = [(module, module.training) for module in modules]
    if any(training for _, training in modes):
        network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            if module.training != training:
                module.training = training
