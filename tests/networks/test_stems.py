from __future__ import annotations

import torch
from torch import nn

from zoo.networks.stems import ConvEmbed


def test_a_conv_stem_has_the_stages_it_is_given() -> None:
    stem = ConvEmbed(1, dim=24, patch_size=4, stages=[[4, 1, 1], [6, 2, 2], [10, 0, 2]])
    convolutions = [m for m in stem.modules() if isinstance(m, nn.Conv2d)]
    assert [(m.in_channels, m.out_channels, m.stride[0]) for m in convolutions] == [
        (1, 4, 1),
        *[(4, 4, 1)] * 2,
        (4, 6, 2),
        *[(6, 6, 1)] * 4,
        (6, 10, 2),
        (10, 24, 1),
    ]
    assert stem(torch.randn(2, 1, 16, 16)).shape == (2, 24, 4, 4)
