"""Plain PyTorch networks, one architecture a file. No Lightning below this folder."""

from __future__ import annotations

from typing import Any

from torch import nn

from zoo.networks.layers import Network, freeze, unfreeze
from zoo.networks.resnet import ResNet, resnet18, resnet34, resnet50, resnet101

__all__ = [
    "Network",
    "ResNet",
    "build",
    "describe",
    "freeze",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "unfreeze",
]

# What a checkpoint may name: never an import path, so that nothing else is ever imported for it.
REGISTRY: dict[str, type[Network]] = {"ResNet": ResNet}


def describe(network: nn.Module | None) -> dict[str, Any] | None:
    """``{"name": …, "args": …}`` for ``build`` to make the same network; None if not ours."""
    name = type(network).__name__
    if isinstance(network, Network) and REGISTRY.get(name) is type(network):
        return {"name": name, "args": dict(network.config)}
    return None


def build(description: dict[str, Any]) -> Network:
    """A network with fresh weights from what ``describe`` wrote.

    Raises:
        ValueError: the name is not in the registry.
    """
    name = description.get("name")
    if name not in REGISTRY:
        raise ValueError(f"no network named {name!r}: choose one of {', '.join(REGISTRY)}")
    return REGISTRY[name](**description["args"])
