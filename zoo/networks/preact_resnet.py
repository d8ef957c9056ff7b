"""Pre-activation and wide residual networks: BatchNorm and ReLU before each convolution.

He, Zhang, Ren and Sun, "Identity Mappings in Deep Residual Networks", ECCV 2016, section 4: the
shortcut stays free of everything, so that a thousand layers train. Zagoruyko and Komodakis, "Wide
Residual Networks", BMVC 2016: fewer blocks, more channels.

Wide ResNets may drop between a block's two convolutions (section 2.4 there), after the second
BatchNorm. By way of the residual sum that dropout reaches the next block's first BatchNorm (Kim et
al., UAI 2023, find it useful there; ``zoo.audit`` warns); ``drop_rate`` is 0 by default. Put right
before the second BatchNorm, as some ports do, it would be an error. Element-wise dropout on maps
does little, so this one is spatial. In its place whole branches may be dropped (stochastic depth:
Huang et al., ECCV 2016), with a rate that grows linearly with the block.

Shapes: B batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from zoo.networks.base import JOINS_PREVIOUS, ImageNetwork, check_rates, check_sizes
from zoo.networks.initializers import init_he
from zoo.networks.layers import conv1x1, conv3x3


class PreActBlock(nn.Module):
    """BN-ReLU-conv-BN-ReLU-dropout-conv, added to the input (He et al. 2016b, figure 4e)."""

    def __init__(
        self, in_channels: int, width: int, stride: int, drop_rate: float, drop_path: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = conv3x3(in_channels, width, stride)
        self.norm2 = nn.BatchNorm2d(width)
        self.drop = nn.Dropout2d(drop_rate)
        self.conv2 = conv3x3(width, width)
        self.downsample = (
            None if stride == 1 and in_channels == width else conv1x1(in_channels, width, stride)
        )
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) → (B, width, H / stride, W / stride)."""
        out = self.norm1(x).relu()
        # Where the shape changes, the projection sees the normalized input.
        shortcut = x if self.downsample is None else self.downsample(out)
        out = self.norm2(self.conv1(out)).relu()
        return shortcut + self.drop_path(self.conv2(self.drop(out)))


class PreActResNet(ImageNetwork):
    """A pre-activation ResNet for small images; wide where ``widen`` is more than 1.

    Args:
        num_classes: size of the output; 0 returns pooled features.
        in_channels: 1 for grayscale images, 3 for color.
        layers: blocks in each stage; every stage after the first halves height and width.
        width: channels of the stem; the first stage has ``width · widen``, each later one twice
            as many.
        widen: k of a WRN-n-k.
        drop_rate: rate of spatial dropout between a block's convolutions; see this file's head.
        drop_path_rate: rate of stochastic depth at the last block; it grows linearly from 0.

    Raises:
        ValueError: no stage, a size below one, or a rate outside [0, 1).
    """

    ends_in_norm = True

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        layers: tuple[int, ...] = (2, 2, 2),
        width: int = 16,
        widen: int = 1,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if not layers or min(layers) < 1:
            raise ValueError(f"layers is {list(layers)}: give each stage at least one block")
        check_sizes(num_classes, width=width, widen=widen, in_channels=in_channels)
        check_rates(drop_rate=drop_rate, drop_path_rate=drop_path_rate)
        self.conv = conv3x3(in_channels, width)
        channels, done = width, 0
        self.stages = nn.ModuleList()
        self.num_stages = 1 + len(layers)
        for stage, depth in enumerate(layers):
            out_channels = width * widen * 2**stage
            blocks = []
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                path = drop_path_rate * done / max(1, sum(layers) - 1)  # the linear rule
                blocks.append(PreActBlock(channels, out_channels, stride, drop_rate, path))
                channels, done = out_channels, done + 1
            self.stages.append(nn.Sequential(*blocks))
        self.norm = nn.BatchNorm2d(channels)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.num_features, self.num_classes = channels, num_classes
        self.fc: nn.Module = nn.Linear(channels, num_classes) if num_classes else nn.Identity()
        init_he(self)

    def forward_stages(self, x: Tensor) -> Iterator[Tensor]:
        """(B, C, H, W) → the maps of the stem, then those of each stage."""
        x = self.conv(x)
        yield x
        for stage in self.stages:
            x = self.run_stage(stage, x)
            yield x

    def forward_end(self, x: Tensor) -> Tensor:
        """The last stage's maps → the same, normalized, after ReLU."""
        return self.norm(x).relu()

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, num_features, H', W') → logits (B, K), or (B, num_features) if ``pre_logits``."""
        pooled = torch.flatten(self.pool(features), 1)
        return pooled if pre_logits else self.fc(pooled)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        block = r"^stages\.(\d+)\." if coarse else r"^stages\.(\d+)\.(\d+)\."
        return {"stem": r"^conv\.", "blocks": [(block, None), (r"^norm\.", JOINS_PREVIOUS)]}


def preact_resnet18(
    num_classes: int = 10, in_channels: int = 3, drop_rate: float = 0.0
) -> PreActResNet:
    """Pre-activation ResNet-18 for 32 × 32 images: 11.2 M parameters at 10 classes."""
    return PreActResNet(num_classes, in_channels, (2, 2, 2, 2), 64, drop_rate=drop_rate)


def wrn28_10(num_classes: int = 10, in_channels: int = 3, drop_rate: float = 0.0) -> PreActResNet:
    """WRN-28-10 (Zagoruyko & Komodakis 2016, table 4): 36.5 M parameters at 10 classes."""
    return PreActResNet(num_classes, in_channels, (4, 4, 4), 16, 10, drop_rate)
