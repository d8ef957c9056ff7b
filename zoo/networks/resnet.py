"""Residual networks: BatchNorm after every convolution, no dropout anywhere.

He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, section 3;
the stride of a bottleneck sits in its 3 × 3 convolution, as in torchvision and timm. Parameter
names are theirs too, so that published weights load with ``strict=True``.

BatchNorm regularizes by the noise of its batch statistics (Ioffe & Szegedy 2015, section 3.4),
and dropout before it would shift the variance of its running statistics (Li et al., CVPR 2019): a
ResNet is regularized by augmentation, weight decay and label smoothing instead.

Shapes: B batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from zoo.networks.base import ImageNetwork, check_choice, check_sizes
from zoo.networks.initializers import init_he
from zoo.networks.layers import conv1x1, conv3x3


class BasicBlock(nn.Module):
    """conv-BN-ReLU-conv-BN, added to its input, then ReLU (He et al. 2016, figure 5 left)."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, width, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(in_channels, width, stride)

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        return self.bn2

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) → (B, width, H / stride, W / stride)."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            x = self.downsample(x)
        out += x
        return self.relu(out)


class Bottleneck(nn.Module):
    """1 × 1, 3 × 3, 1 × 1 convolutions, added to their input (He et al. 2016, figure 5 right)."""

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: int = 1,
        groups: int = 1,
        group_width: float = 1.0,
    ) -> None:
        super().__init__()
        out_channels = width * self.expansion
        inner = int(width * group_width) * groups
        self.conv1 = conv1x1(in_channels, inner)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = conv3x3(inner, inner, stride, groups)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = conv1x1(inner, out_channels)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = shortcut(in_channels, out_channels, stride)

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        return self.bn3

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) → (B, 4 · width, H / stride, W / stride)."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.downsample is not None:
            x = self.downsample(x)
        out += x
        return self.relu(out)


def shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    """The projection where a block changes its input's shape (He et al. 2016, option B)."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(conv1x1(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels))


class ResNet(ImageNetwork):
    """A residual network for images of any size.

    Args:
        num_classes: size of the output; 0 returns pooled features.
        in_channels: 1 for grayscale images, 3 for color.
        block: ``basic`` (18 and 34 layers) or ``bottleneck`` (50 and more).
        layers: blocks in each stage; every stage after the first halves height and width.
        width: channels of the first stage; every stage doubles them.
        stem: ``small``, one 3 × 3 convolution that keeps the resolution (He et al. 2016,
            section 4.2, for 32 × 32 images), ``pool``, the same and then 2 × 2 max pooling, or
            ``imagenet``, 7 × 7 with stride 2 and then max pooling (section 3.4).
        groups: groups of a bottleneck's 3 × 3 convolution (ResNeXt: Xie et al., CVPR 2017,
            section 3.1).
        group_width: channels of one group, as a multiple of the block's width (4 / 64 in
            ResNeXt-50 32 × 4d; 2 with one group in a Wide ResNet-50-2: Zagoruyko & Komodakis 2016).

    Raises:
        ValueError: an unknown block or stem, no stage, a size below one, or groups in basic blocks.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        in_channels: int = 3,
        block: Literal["basic", "bottleneck"] = "basic",
        layers: tuple[int, ...] = (2, 2, 2, 2),
        width: int = 64,
        stem: Literal["small", "pool", "imagenet"] = "imagenet",
        groups: int = 1,
        group_width: float = 1.0,
    ) -> None:
        super().__init__()
        check_choice("block", block, "basic", "bottleneck")
        check_choice("stem", stem, "small", "pool", "imagenet")
        if not layers or min(layers) < 1:
            raise ValueError(f"layers is {list(layers)}: give each stage at least one block")
        check_sizes(num_classes, width=width, in_channels=in_channels)
        if groups < 1 or int(width * group_width) < 1:
            raise ValueError(f"groups {groups} of width {group_width}: each needs a channel")
        if block == "basic" and (groups, group_width) != (1, 1.0):
            raise ValueError("groups and group_width are for bottleneck blocks")
        make_block: Any = (
            BasicBlock
            if block == "basic"
            else partial(Bottleneck, groups=groups, group_width=group_width)
        )
        expansion = BasicBlock.expansion if block == "basic" else Bottleneck.expansion

        if stem == "imagenet":
            self.conv1 = nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False)
        else:
            self.conv1 = conv3x3(in_channels, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool: nn.Module = {
            "small": nn.Identity(),
            "pool": nn.MaxPool2d(2),
            "imagenet": nn.MaxPool2d(3, stride=2, padding=1),
        }[stem]

        channels = width
        self.stages: list[str] = []
        for stage, depth in enumerate(layers):
            blocks = []
            for index in range(depth):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(make_block(channels, width * 2**stage, stride))
                channels = width * 2**stage * expansion
            self.stages.append(f"layer{stage + 1}")
            self.add_module(self.stages[-1], nn.Sequential(*blocks))

        self.num_stages = 1 + len(layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.num_features = channels
        self.num_classes = num_classes
        self.fc: nn.Module = nn.Linear(channels, num_classes) if num_classes else nn.Identity()

        init_he(self)
        for module in self.modules():
            if isinstance(module, BasicBlock | Bottleneck):
                # Each block starts as the identity (Goyal et al. 2017, section 5.1).
                nn.init.zeros_(module.last_norm.weight)

    def forward_stages(self, x: Tensor) -> Iterator[Tensor]:
        """(B, C, H, W) → the stem's maps before pooling, then those of each stage."""
        x = self.relu(self.bn1(self.conv1(x)))
        yield x
        x = self.maxpool(x)
        for stage in self.stages:
            x = self.run_stage(getattr(self, stage), x)
            yield x

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, num_features, H', W') → logits (B, K), or (B, num_features) if ``pre_logits``."""
        pooled = torch.flatten(self.avgpool(features), 1)
        return pooled if pre_logits else self.fc(pooled)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {
            "stem": r"^(?:conv1|bn1)\.",
            "blocks": r"^layer(\d+)\." if coarse else r"^layer(\d+)\.(\d+)\.",
        }


def resnet18(num_classes: int = 1000, in_channels: int = 3) -> ResNet:
    """ResNet-18 (He et al. 2016, table 1): 11.7 M parameters at 1000 classes."""
    return ResNet(num_classes, in_channels, "basic", (2, 2, 2, 2))


def resnet34(num_classes: int = 1000, in_channels: int = 3) -> ResNet:
    """ResNet-34 (He et al. 2016, table 1): 21.8 M parameters at 1000 classes."""
    return ResNet(num_classes, in_channels, "basic", (3, 4, 6, 3))


def resnet50(num_classes: int = 1000, in_channels: int = 3) -> ResNet:
    """ResNet-50 (He et al. 2016, table 1): 25.6 M parameters at 1000 classes."""
    return ResNet(num_classes, in_channels, "bottleneck", (3, 4, 6, 3))


def resnet101(num_classes: int = 1000, in_channels: int = 3) -> ResNet:
    """ResNet-101 (He et al. 2016, table 1): 44.5 M parameters at 1000 classes."""
    return ResNet(num_classes, in_channels, "bottleneck", (3, 4, 23, 3))


def resnet152(num_classes: int = 1000, in_channels: int = 3) -> ResNet:
    """ResNet-152 (He et al. 2016, table 1): 60.2 M parameters at 1000 classes."""
    return ResNet(num_classes, in_channels, "bottleneck", (3, 8, 36, 3))


def resnext50_32x4d(num_classes: int = 1000, in_channels: int = 3) -> ResNet:
    """ResNeXt-50 32 × 4d (Xie et al. 2017, table 1): 25.0 M parameters at 1000 classes."""
    return ResNet(
        num_classes, in_channels, "bottleneck", (3, 4, 6, 3), groups=32, group_width=4 / 64
    )


def resnext101_32x8d(num_classes: int = 1000, in_channels: int = 3) -> ResNet:
    """ResNeXt-101 32 × 8d (Mahajan et al., ECCV 2018): 88.8 M parameters at 1000 classes."""
    return ResNet(
        num_classes, in_channels, "bottleneck", (3, 4, 23, 3), groups=32, group_width=8 / 64
    )


def wide_resnet50_2(num_classes: int = 1000, in_channels: int = 3) -> ResNet:
    """Wide ResNet-50-2 (Zagoruyko & Komodakis 2016, table 8): 68.9 M parameters."""
    return ResNet(num_classes, in_channels, "bottleneck", (3, 4, 6, 3), group_width=2.0)


def wide_resnet101_2(num_classes: int = 1000, in_channels: int = 3) -> ResNet:
    """Wide ResNet-101-2, as ``wide_resnet50_2`` with more blocks: 126.9 M parameters."""
    return ResNet(num_classes, in_channels, "bottleneck", (3, 4, 23, 3), group_width=2.0)
