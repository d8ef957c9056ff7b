"""What a network's classifier sees: one vector an image."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from zoo.errors import UserError
from zoo.networks.base import classifier_name


def pooled_features(network: nn.Module, images: Tensor) -> Tensor:
    """Computes the input of a network's classifier, one forward for any network.

    Args:
        network: with a classifier: ``get_classifier()``, or ``fc``, ``classifier``, ``head``.
        images: (B, C, H, W), normalized.

    Returns:
        (B, D).

    Raises:
        UserError: the classifier cannot be found, or takes no vectors.
    """
    name = classifier_name(network)
    if name is None:
        raise UserError(f"cannot find the classifier of {type(network).__name__}")
    seen: list[Tensor] = []

    def keep(module: nn.Module, args: Any) -> None:
        seen.append(args[0])

    handle = network.get_submodule(name).register_forward_pre_hook(keep)
    try:
        network(images)
    finally:
        handle.remove()
    if len(seen) != 1 or seen[0].ndim != 2:
        raise UserError(f"{name} of {type(network).__name__} takes no vectors: it has no features")
    return seen[0]
