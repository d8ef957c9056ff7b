from __future__ import annotations

import pytest
import torch
from timm.layers import BatchNormAct2d, create_conv2d
from timm.models.resnetv2 import PreActBasic
from torch import nn

import zoo
from zoo import networks
from zoo.networks import PreActResNet
from zoo.networks.preact_resnet import PreActBlock


@pytest.mark.parametrize(("channels", "stride"), [((8, 8), 1), ((8, 16), 2)])
def test_a_block_computes_what_timms_does(channels: tuple[int, int], stride: int) -> None:
    torch.manual_seed(0)
    theirs = PreActBasic(
        *channels,
        bottle_ratio=1.0,
        stride=stride,
        conv_layer=create_conv2d,
        norm_layer=BatchNormAct2d,
        proj_layer=None if stride == 1 else _Projection,
    ).eval()
    ours = PreActBlock(*channels, stride, drop_rate=0.0, drop_path=0.0).eval()
    state = {k.replace("downsample.conv", "downsample"): v for k, v in theirs.state_dict().items()}
    ours.load_state_dict(state, strict=True)
    x = torch.randn(2, channels[0], 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


class _Projection(nn.Module):
    """timm's, with a convolution that has no bias."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, **_: object) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x)


def test_presets_have_the_published_sizes() -> None:
    with torch.device("meta"):
        sizes = {
            name: sum(p.numel() for p in getattr(networks, name)().parameters())
            for name in ("wrn28_10", "preact_resnet18")
        }
    assert sizes["wrn28_10"] == pytest.approx(36.5e6, rel=0.01)
    assert sizes["preact_resnet18"] == pytest.approx(11.2e6, rel=0.01)


def test_dropout_between_the_convolutions_is_warned_of_and_off_by_default() -> None:
    x = torch.randn(4, 1, 12, 12)
    assert not zoo.audit(PreActResNet(5, 1, (1, 1), 8), x).at_least("warning")
    found = zoo.audit(PreActResNet(5, 1, (1, 1), 8, drop_rate=0.2), x).at_least("warning")
    # By way of the sum, the next norm: the second block's, and the last.
    assert [finding.module for finding in found] == ["stages.1.0.norm1", "norm"]
    assert {finding.severity for finding in found} == {"warning"}


def test_an_identity_shortcut_is_free_of_everything() -> None:
    block = PreActBlock(8, 8, 1, 0.0, 0.0).eval()
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 8, 6, 6)
    assert torch.equal(block(x), x)


def test_stochastic_depth_drops_whole_branches_more_often_towards_the_end() -> None:
    network = PreActResNet(5, 1, (1, 2), 8, drop_path_rate=0.4)
    blocks = [m for m in network.modules() if isinstance(m, PreActBlock)]
    assert [block.drop_path.drop_prob for block in blocks] == pytest.approx([0.0, 0.2, 0.4])
    last = blocks[-1].train()
    x = torch.randn(500, 16, 4, 4)
    branch = (last(x) - x).flatten(1).abs().amax(1)
    # Each image's whole branch is dropped or kept: 0.4 ± 4 standard errors.
    assert float((branch == 0).float().mean()) == pytest.approx(0.4, abs=0.09)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": (0,)}, "at least one block"),
        ({"widen": 0}, "at least 1"),
        ({"drop_rate": -0.1}, "drop_rate is -0.1"),
        ({"drop_path_rate": 1.0}, "drop_path_rate is 1.0"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PreActResNet(**arguments)
