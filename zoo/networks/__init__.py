"""Plain PyTorch networks, one architecture a file. No Lightning below this folder."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from zoo.networks.base import ImageNetwork, Network
from zoo.networks.convnet import ConvNet
from zoo.networks.densenet import DenseNet, densenet121, densenet161, densenet169, densenet201
from zoo.networks.efficientnet import (
    EfficientNet,
    efficientnet_b0,
    efficientnet_b1,
    efficientnet_b2,
    efficientnet_b3,
    efficientnet_b4,
    efficientnet_b5,
    efficientnet_b6,
    efficientnet_b7,
    efficientnet_small,
)
from zoo.networks.freezing import freeze, unfreeze
from zoo.networks.generation import generate
from zoo.networks.lstm import LSTM
from zoo.networks.preact_resnet import PreActResNet, preact_resnet18, wrn28_10
from zoo.networks.resnet import (
    ResNet,
    resnet18,
    resnet34,
    resnet50,
    resnet101,
    resnet152,
    resnext50_32x4d,
    resnext101_32x8d,
    wide_resnet50_2,
    wide_resnet101_2,
)
from zoo.networks.sngan import SNGAN, Discriminator, Generator
from zoo.networks.timm_network import timm_network
from zoo.networks.transformer import Transformer
from zoo.networks.unet import UNet
from zoo.networks.vit import (
    ViT,
    vit_base_patch16_224,
    vit_base_patch32_224,
    vit_small_patch16_224,
    vit_tiny_patch16_224,
)

__all__ = [
    "LSTM",
    "SNGAN",
    "ConvNet",
    "DenseNet",
    "Discriminator",
    "EfficientNet",
    "Generator",
    "ImageNetwork",
    "Network",
    "PreActResNet",
    "ResNet",
    "Transformer",
    "UNet",
    "ViT",
    "amend",
    "build",
    "defaults",
    "densenet121",
    "densenet161",
    "densenet169",
    "densenet201",
    "describe",
    "efficientnet_b0",
    "efficientnet_b1",
    "efficientnet_b2",
    "efficientnet_b3",
    "efficientnet_b4",
    "efficientnet_b5",
    "efficientnet_b6",
    "efficientnet_b7",
    "efficientnet_small",
    "freeze",
    "generate",
    "preact_resnet18",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "timm_network",
    "unfreeze",
    "vit_base_patch16_224",
    "vit_base_patch32_224",
    "vit_small_patch16_224",
    "vit_tiny_patch16_224",
    "wide_resnet50_2",
    "wide_resnet101_2",
    "wrn28_10",
]

# What a checkpoint may name: never an import path, so that nothing else is ever imported for it.
REGISTRY: dict[str, Callable[..., nn.Module]] = {
    network.__name__: network
    for network in (
        ConvNet,
        DenseNet,
        Discriminator,
        EfficientNet,
        SNGAN,
        Generator,
        LSTM,
        PreActResNet,
        ResNet,
        Transformer,
        UNet,
        ViT,
        timm_network,
    )
}


def describe(network: nn.Module | None) -> dict[str, Any] | None:
    """Describes a network as ``{"name": …, "args": …}`` for ``build``; None if it is not ours."""
    name = type(network).__name__
    if isinstance(network, Network) and REGISTRY.get(name) is type(network):
        return {"name": name, "args": dict(network.config)}
    return getattr(network, "zoo_description", None)


def amend(network: nn.Module, **arguments: Any) -> None:
    """Records that a network was changed after it was built, as ``describe`` will tell it."""
    if isinstance(network, Network):
        network.config.update(arguments)
    else:
        kept: dict[str, Any] = getattr(network, "zoo_description", {})
        kept.get("args", {}).update(arguments)


def defaults(name: str) -> dict[str, Any]:
    """Returns the default arguments of a registered network, as JSON values."""
    parameters = inspect.signature(REGISTRY[name]).parameters.values() if name in REGISTRY else ()
    given = {p.name: p.default for p in parameters if p.default is not p.empty}
    return json.loads(json.dumps(given))


def build(description: Mapping[str, Any]) -> nn.Module:
    """Builds a network with fresh weights from what ``describe`` wrote; nothing is downloaded.

    Raises:
        ValueError: the name is not in the registry.
    """
    name, args = description.get("name"), description["args"]
    if name not in REGISTRY:
        raise ValueError(f"no network named {name!r}: choose one of {', '.join(REGISTRY)}")
    # Weights follow, so that a description that asks for others is not one that describe wrote.
    return REGISTRY[name](**{**args, "pretrained": False} if "pretrained" in args else args)
