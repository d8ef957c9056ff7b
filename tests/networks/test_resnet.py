from __future__ import annotations

import math
from itertools import pairwise

import pytest
import timm
import torch
import torchvision
from torch import nn

from zoo import networks
from zoo.networks import ResNet
from zoo.networks.resnet import BasicBlock, Bottleneck

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


def randomized(module: nn.Module) -> nn.Module:
    """Norms away from their initial values, so that a swapped one would show."""
    generator = torch.Generator().manual_seed(3)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and ("bn" in name or "downsample.1" in name):
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
    return module.eval()


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet34", "resnet50", "resnet101", "resnext50_32x4d", "wide_resnet50_2"]
)
def test_same_parameter_names_and_shapes_as_torchvision(name: str) -> None:
    with torch.device("meta"):
        ours = getattr(networks, name)().state_dict()
        theirs = getattr(torchvision.models, name)().state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnext50_32x4d"])
@pytest.mark.parametrize("peer", ["torchvision", "timm"])
def test_weights_load_strictly_and_give_the_same_logits(name: str, peer: str) -> None:
    torch.manual_seed(0)
    theirs = (
        getattr(torchvision.models, name)() if peer == "torchvision" else timm.create_model(name)
    )
    randomized(theirs)
    ours = getattr(networks, name)().eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_batchnorm_after_every_convolution_and_no_dropout(block: str) -> None:
    """By behavior: what runs after each convolution is a BatchNorm over its channels."""
    network = ResNet(10, 1, block, (1, 2), 8, "small").train()
    order: list[nn.Module] = []
    for module in network.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda m, *_: order.append(m))
    first = network(torch.randn(4, 1, 12, 12))
    for module, following in pairwise(order):
        if isinstance(module, nn.Conv2d):
            assert module.bias is None
            assert isinstance(following, nn.BatchNorm2d)
            assert following.num_features == module.out_channels
    assert not any(isinstance(module, DROPOUTS) for module in network.modules())
    # No dropout by any other name either: training mode draws no random number.
    state = torch.get_rng_state()
    torch.manual_seed(0)
    fixed = torch.randn(4, 1, 12, 12)
    before = torch.get_rng_state()
    network(fixed)
    assert torch.equal(before, torch.get_rng_state())
    torch.set_rng_state(state)
    assert first.shape == (4, 10)


def test_he_initialization_has_the_variance_of_its_formula() -> None:
    torch.manual_seed(0)
    network = ResNet(10, 3, "basic", (1, 1), 64, "imagenet")
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 10_000:
            fan_out = module.out_channels * math.prod(module.kernel_size)
            assert module.weight.var().item() == pytest.approx(2 / fan_out, rel=0.05)


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_each_branch_starts_at_zero_so_that_a_block_is_its_shortcut(block: str) -> None:
    network = ResNet(10, 1, block, (3,), 8, "small").train()
    blocks = [m for m in network.modules() if isinstance(m, BasicBlock | Bottleneck)]
    assert len(blocks) == 3
    channels = 8 if block == "basic" else 32
    x = torch.rand(2, channels, 6, 6)
    assert torch.equal(blocks[1](x), x)


def test_gradients_neither_vanish_nor_explode_over_fifty_blocks() -> None:
    torch.manual_seed(0)
    network = ResNet(10, 3, "basic", (50,), 16, "small").train()
    for block in network.layer1:
        nn.init.ones_(block.bn2.weight)  # the hardest case: no branch is switched off
    images = torch.randn(16, 3, 16, 16)
    nn.functional.cross_entropy(network(images), torch.arange(16) % 10).backward()
    norms = [block.conv1.weight.grad.norm().item() for block in network.layer1]
    # An un-normalized stack of 50 would differ by orders of magnitude; the residual sum grows
    # the activations by about one a block, so that earlier blocks weigh more, as 1 to 1/50.
    assert max(norms) / min(norms) < 100
    assert min(norms) > 1e-4


@pytest.mark.parametrize(
    ("stem", "size"), [("small", 32), ("pool", 16), ("imagenet", 8)], ids=["small", "pool", "big"]
)
def test_stems_keep_halve_or_quarter_the_resolution(stem: str, size: int) -> None:
    network = ResNet(10, 3, "basic", (1,), 8, stem).eval()
    assert network.forward_features(torch.zeros(1, 3, 32, 32)).shape == (1, 8, size, size)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"block": "wide"}, "choose basic or bottleneck"),
        ({"stem": "tiny"}, "choose small, pool or imagenet"),
        ({"layers": ()}, "at least one block"),
        ({"layers": (2, 0)}, "at least one block"),
        ({"width": 0}, "at least 1"),
        ({"groups": 2}, "for bottleneck blocks"),
        ({"block": "bottleneck", "groups": 32, "group_width": 0.01}, "each needs a channel"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ResNet(**arguments)
