from __future__ import annotations

import pytest
import torch
from timm.models._efficientnet_blocks import EdgeResidual
from torch import nn

from tests.networks.test_resnet import randomized
from zoo.networks.inverted_residuals import Depthwise, FusedMBConv, round_channels


@pytest.mark.parametrize(("channels", "stride"), [(16, 1), (24, 2)])
def test_a_fused_block_loads_timms_strictly_and_gives_the_same(channels: int, stride: int) -> None:
    torch.manual_seed(0)
    theirs = randomized(
        EdgeResidual(16, channels, 3, stride, exp_ratio=4, act_layer=nn.SiLU, pad_type="")
    )
    ours = FusedMBConv(16, channels, 3, stride, 4, 0.0).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(2, 16, 9, 9)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_strided_depthwise_convolution_trains_as_torchs(
    kernel: int, size: int, precision: torch.dtype
) -> None:
    torch.manual_seed(0)
    ours = Depthwise(6, kernel, 2).to(precision)
    theirs = nn.Conv2d(6, 6, kernel, 2, kernel // 2, groups=6, bias=False, dtype=precision)
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, 6, size, size, dtype=precision, requires_grad=True)
    results = []
    for layer in (ours, theirs):
        out = layer(images)
        out.square().sum().backward()
        results.append((out, layer.weight.grad, images.grad))
        images.grad = None
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted)


def test_round_channels() -> None:
    assert [round_channels(c) for c in (1, 8, 12, 19, 28.8, 44.8)] == [8, 8, 16, 24, 32, 48]
