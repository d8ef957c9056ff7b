"""Presets against the same network of torchvision's or timm's, with its weights."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from torch import nn

from zoo import networks

PRESETS = [
    ("resnet152", "torchvision"),
    ("resnext101_32x8d", "torchvision"),
    ("wide_resnet101_2", "torchvision"),
    ("densenet161", "torchvision"),
    ("densenet169", "torchvision"),
    ("densenet201", "torchvision"),
    ("efficientnet_b5", "timm"),
    ("efficientnet_b6", "timm"),
    ("efficientnet_b7", "timm"),
    ("vit_base_patch16_224", "timm"),
    ("vit_base_patch32_224", "timm"),
]


def peer(name: str, library: str) -> nn.Module:
    """The library's network, every tensor random: no two norms or biases are alike."""
    make = timm.create_model if library == "timm" else torchvision.models.get_model
    with torch.device("meta"):  # its own initialization would take most of the test's time
        network = make(name).to_empty(device="cpu").eval()
    torch.manual_seed(0)
    for tensor in network.state_dict().values():
        if not tensor.is_floating_point():
            tensor.zero_()  # batches that were counted
        elif tensor.ndim == 1:
            tensor.uniform_(0.9, 1.2)
        else:
            bound = (3 / tensor[0].numel()) ** 0.5
            tensor.uniform_(-bound, bound)
    return network


@pytest.mark.parametrize(("name", "library"), PRESETS)
def test_weights_load_strictly_and_give_equal_logits(name: str, library: str) -> None:
    theirs = peer(name, library)
    with torch.device("meta"):
        ours = getattr(networks, name)().eval()
    ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)
    size = 224 if name.startswith("vit") else 64
    images = torch.randn(1, 3, size, size)
    with torch.no_grad():
        logits = theirs(images)
        assert logits.isfinite().all()
        assert logits.std() > 0.1
        assert torch.equal(ours(images), logits)


@pytest.mark.parametrize("name", [name for name, library in PRESETS if library == "timm"])
def test_rates_and_resolution_are_the_arguments_of_a_preset(name: str) -> None:
    with torch.device("meta"):
        network = getattr(networks, name)(7, 1, drop_path_rate=0.25)
    assert network.config["num_classes"] == 7
    assert network.config["in_channels"] == 1
    assert network.config["drop_path_rate"] == 0.25
