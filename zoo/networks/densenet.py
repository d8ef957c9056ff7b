"""DenseNet: every layer sees the feature maps of all layers before it.

Huang, Liu, van der Maaten and Weinberger, "Densely Connected Convolutional Networks", CVPR 2017,
section 3. BatchNorm and ReLU stand before each convolution. Parameter names are torchvision's, so
that published weights load with ``strict=True``.

The paper drops the output of every layer where there is no augmentation (section 4.2). By way of
the concatenation that dropout reaches every later BatchNorm and shifts the variance it remembers
(Li et al., CVPR 2019): ``zoo.audit`` warns of it, and ``drop_rate`` is 0 by default.

Shapes: B batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from zoo.networks.base import JOINS_PREVIOUS, ImageNetwork, check_choice, check_rates, check_sizes
from zoo.networks.initializers import init_he


class DenseLayer(nn.Module):
    """BN-ReLU-1 × 1, BN-ReLU-3 × 3, then dropout: ``growth`` new maps (sections 3 and 4.2)."""

    def __init__(self, in_channels: int, growth: int, bottleneck: int, drop_rate: float) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(in_channels, bottleneck * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(bottleneck * growth)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(bottleneck * growth, growth, 3, padding=1, bias=False)
        self.drop = nn.Dropout2d(drop_rate)

    def forward(self, *maps: Tensor) -> Tensor:
        """Maps of all layers before it, (B, in_channels, H, W) in all → (B, growth, H, W)."""
        x = self.conv1(self.relu1(self.norm1(torch.cat(maps, 1))))
        return self.drop(self.conv2(self.relu2(self.norm2(x))))


class DenseBlock(nn.ModuleDict):
    """Layers that each add their maps to what the next one sees (section 3, equation 2)."""

    def __init__(
        self, in_channels: int, layers: int, growth: int, bottleneck: int, drop_rate: float
    ) -> None:
        super().__init__()
        for index in range(layers):
            self[f"denselayer{index + 1}"] = DenseLayer(
                in_channels + index * growth, growth, bottleneck, drop_rate
            )

    def forward(self, x: Tensor, run: Callable[..., Tensor] = nn.Module.__call__) -> Tensor:
        """(B, in_channels, H, W) → (B, in_channels + layers · growth, H, W).

        Args:
            x: maps of the layers before.
            run: calls a layer. Most of a block's memory is its layers' inputs, each longer than the
                one before, so that they and not the block are what is checkpointed.
        """
        maps = [x]
        for layer in self.values():
            maps.append(run(layer, *maps))
        return torch.cat(maps, 1)


def transition(in_channels: int, out_channels: int, ceil_mode: bool) -> nn.Sequential:
    """BN-ReLU-1 × 1 and average pooling: half the maps, half the resolution (section 3)."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        norm=nn.BatchNorm2d(in_channels),
        relu=nn.ReLU(inplace=True),
        conv=nn.Conv2d(in_channels, out_channels, 1, bias=False),
        pool=nn.AvgPool2d(2, ceil_mode=ceil_mode),
    )
    return nn.Sequential(layers)


class DenseNet(ImageNetwork):
    """A DenseNet-BC for images of any size.

    Args:
        num_classes: size of the output; 0 returns pooled features.
        in_channels: 1 for grayscale images, 3 for color.
        layers: layers in each block; between two blocks maps and resolution are halved.
        growth: maps that a layer adds.
        stem_channels: channels of the first convolution.
        stem: ``small``, one 3 × 3 convolution, or ``imagenet``, 7 × 7 with stride 2 and then max
            pooling.
        bottleneck: maps of a layer's 1 × 1 convolution, in multiples of ``growth``.
        drop_rate: rate of spatial dropout after each layer; see the head of this file.

    Raises:
        ValueError: an unknown stem, no block, a size below one, or a rate outside [0, 1).
    """

    classifier_name = "classifier"

    def __init__(
        self,
        num_classes: int = 1000,
        in_channels: int = 3,
        layers: tuple[int, ...] = (6, 12, 24, 16),
        growth: int = 32,
        stem_channels: int = 64,
        stem: Literal["small", "imagenet"] = "imagenet",
        bottleneck: int = 4,
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        check_choice("stem", stem, "small", "imagenet")
        if not layers or min(layers) < 1:
            raise ValueError(f"layers is {list(layers)}: give each block at least one layer")
        check_sizes(
            num_classes,
            growth=growth,
            stem_channels=stem_channels,
            bottleneck=bottleneck,
            in_channels=in_channels,
        )
        check_rates(drop_rate=drop_rate)

        features: OrderedDict[str, nn.Module] = OrderedDict()
        if stem == "imagenet":
            features["conv0"] = nn.Conv2d(in_channels, stem_channels, 7, 2, padding=3, bias=False)
        else:
            features["conv0"] = nn.Conv2d(in_channels, stem_channels, 3, padding=1, bias=False)
        features["norm0"] = nn.BatchNorm2d(stem_channels)
        features["relu0"] = nn.ReLU(inplace=True)
        if stem == "imagenet":
            features["pool0"] = nn.MaxPool2d(3, stride=2, padding=1)
        channels = stem_channels
        for index, count in enumerate(layers, 1):
            features[f"denseblock{index}"] = DenseBlock(
                channels, count, growth, bottleneck, drop_rate
            )
            channels += count * growth
            if index < len(layers):
                # Small images are rounded up, so that a map of one position stays alive.
                features[f"transition{index}"] = transition(
                    channels, channels // 2, ceil_mode=stem == "small"
                )
                channels //= 2
        features[f"norm{len(layers) + 1}"] = nn.BatchNorm2d(channels)
        self.features = nn.Sequential(features)
        self.stage_ends = ["relu0", *(f"denseblock{index}" for index in range(1, len(layers)))]
        self.num_stages = len(self.stage_ends) + 1
        self.num_features, self.num_classes = channels, num_classes
        self.classifier: nn.Module = (
            nn.Linear(channels, num_classes) if num_classes else nn.Identity()
        )
        init_he(self)

    def forward_stages(self, x: Tensor) -> Iterator[Tensor]:
        """(B, C, H, W) → the maps of the stem, of all blocks but the last, and the features."""
        for name, module in self.features.named_children():
            x = module(x, self.run) if isinstance(module, DenseBlock) else module(x)
            if name in self.stage_ends:
                yield x
        yield x.relu()

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, num_features, H', W') → logits (B, K), or (B, num_features) if ``pre_logits``."""
        pooled = features.mean((2, 3))
        return pooled if pre_logits else self.classifier(pooled)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        blocks = [
            (r"^features\.denseblock(\d+)\.denselayer(\d+)\.", None),
            (r"^features\.transition(\d+)\.", JOINS_PREVIOUS),
        ]
        return {
            "stem": r"^features\.(?:conv|norm)0\.",
            "blocks": r"^features\.(?:denseblock|transition)(\d+)\." if coarse else blocks,
        }


def densenet121(num_classes: int = 1000, in_channels: int = 3, drop_rate: float = 0.0) -> DenseNet:
    """DenseNet-121 (Huang et al. 2017, table 1): 8.0 M parameters at 1000 classes."""
    return DenseNet(num_classes, in_channels, drop_rate=drop_rate)


def densenet161(num_classes: int = 1000, in_channels: int = 3, drop_rate: float = 0.0) -> DenseNet:
    """DenseNet-161, torchvision's with a growth of 48: 28.7 M parameters at 1000 classes."""
    return DenseNet(num_classes, in_channels, (6, 12, 36, 24), 48, 96, drop_rate=drop_rate)


def densenet169(num_classes: int = 1000, in_channels: int = 3, drop_rate: float = 0.0) -> DenseNet:
    """DenseNet-169 (Huang et al. 2017, table 1): 14.1 M parameters at 1000 classes."""
    return DenseNet(num_classes, in_channels, (6, 12, 32, 32), drop_rate=drop_rate)


def densenet201(num_classes: int = 1000, in_channels: int = 3, drop_rate: float = 0.0) -> DenseNet:
    """DenseNet-201 (Huang et al. 2017, table 1): 20.0 M parameters at 1000 classes."""
    return DenseNet(num_classes, in_channels, (6, 12, 48, 32), drop_rate=drop_rate)
