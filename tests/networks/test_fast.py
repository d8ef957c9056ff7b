from __future__ import annotations

import pytest
import torch
from torch import nn

from zoo.networks.fast import DepthwiseConv2d, SiLU


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_strided_depthwise_convolution_trains_as_torchs(
    kernel: int, size: int, precision: torch.dtype
) -> None:
    torch.manual_seed(0)
    ours = DepthwiseConv2d(6, kernel, 2).to(precision)
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


def test_silu_is_torchs_and_overwrites_its_input_where_nothing_is_differentiated() -> None:
    values = torch.randn(3, 5)
    results = []
    for layer in (SiLU(), nn.SiLU()):
        x = values.clone().requires_grad_()
        out = layer(x)
        out.square().sum().backward()
        results.append((out, x.grad, x.detach()))
    assert all(torch.equal(ours, torchs) for ours, torchs in zip(*results, strict=True))
    with torch.no_grad():
        x = values.clone()
        out = SiLU()(x)
        assert out.data_ptr() == x.data_ptr()
        assert torch.equal(out, nn.SiLU()(values))
