"""U-Net: a label for every pixel, with spatial dropout at the bottom.

Ronneberger, Fischer and Brox, "U-Net: Convolutional Networks for Biomedical Image Segmentation",
MICCAI 2015, section 2, with padded convolutions, so that the output has the input's size. As there,
dropout stands at the end of the contracting path; here whole channels are dropped (Tompson et al.,
CVPR 2015, section 3.2).

The expanding path normalizes again, after that dropout. GroupNorm (Wu & He, ECCV 2018), the
default, keeps no running statistics that dropout could shift, and suits the small batches of
segmentation; with ``norm: batch`` and a drop rate, ``zoo.audit`` warns.

Shapes: B batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from zoo.networks.base import ImageNetwork, check_choice, check_rates, check_sizes
from zoo.networks.initializers import init_he


def make_norm2d(kind: Literal["group", "batch"], channels: int) -> nn.Module:
    # Groups of eight channels: for the 64 and more of the paper, as many as Wu & He found good.
    return nn.GroupNorm(channels // 8, channels) if kind == "group" else nn.BatchNorm2d(channels)


def init_head(head: nn.Module) -> None:
    """As a linear layer of each pixel: uniform in ±1/√fan_in, zero bias."""
    if isinstance(head, nn.Conv2d):
        bound = head.in_channels**-0.5
        nn.init.uniform_(head.weight, -bound, bound)
        assert head.bias is not None
        nn.init.zeros_(head.bias)


class DoubleConv(nn.Sequential):
    """Twice 3 × 3 convolution, norm and ReLU: (B, in_channels, H, W) → (B, channels, H, W)."""

    def __init__(self, in_channels: int, channels: int, norm: Literal["group", "batch"]) -> None:
        layers: list[nn.Module] = []
        for width in (in_channels, channels):
            layers += [
                nn.Conv2d(width, channels, 3, padding=1, bias=False),
                make_norm2d(norm, channels),
                nn.ReLU(inplace=True),
            ]
        super().__init__(*layers)


class UNet(ImageNetwork):
    """A U-Net for images whose sides are multiples of ``2 ** depth``.

    Args:
        num_classes: labels of a pixel; 0 returns the features of each.
        in_channels: 1 for grayscale images, 3 for color.
        width: channels at full resolution; every halving doubles them.
        depth: how often the resolution is halved.
        norm: ``group`` or ``batch``.
        drop_rate: rate of spatial dropout at the end of the contracting path.

    Raises:
        ValueError: a width that is not a multiple of 8, a size below one, or a rate outside [0, 1).
    """

    classifier_name = "head"
    global_pools = ()  # every pixel has its label

    def __init__(
        self,
        num_classes: int = 2,
        in_channels: int = 3,
        width: int = 64,
        depth: int = 4,
        norm: Literal["group", "batch"] = "group",
        drop_rate: float = 0.5,
    ) -> None:
        super().__init__()
        check_choice("norm", norm, "group", "batch")
        if width < 8 or width % 8:
            raise ValueError(f"width is {width}: it must be a multiple of 8")
        check_sizes(num_classes, depth=depth, in_channels=in_channels)
        check_rates(drop_rate=drop_rate)
        widths = [width * 2**level for level in range(depth + 1)]
        self.depth = depth
        self.num_stages = 2 * depth + 1
        self.down = nn.ModuleList(
            DoubleConv(before, after, norm)
            for before, after in zip([in_channels, *widths], widths, strict=False)
        )
        self.pool = nn.MaxPool2d(2)
        self.drop = nn.Dropout2d(drop_rate)
        self.grow = nn.ModuleList(
            nn.ConvTranspose2d(wide, wide // 2, 2, stride=2) for wide in widths[:0:-1]
        )
        self.up = nn.ModuleList(DoubleConv(wide, wide // 2, norm) for wide in widths[:0:-1])
        self.num_features, self.num_classes = width, num_classes
        self.head: nn.Module = nn.Conv2d(width, num_classes, 1) if num_classes else nn.Identity()
        init_he(self)
        for layer in self.modules():
            if isinstance(layer, nn.ConvTranspose2d):  # no ReLU follows: the variance is kept
                nn.init.normal_(layer.weight, std=float(layer.in_channels) ** -0.5)
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)
        init_head(self.head)

    def forward_stages(self, x: Tensor) -> Iterator[Tensor]:
        """(B, C, H, W) → the maps of each level down, then up again; the last (B, width, H, W).

        Raises:
            ValueError: height or width is not a multiple of ``2 ** depth``.
        """
        if x.shape[2] % 2**self.depth or x.shape[3] % 2**self.depth:
            sides = f"{x.shape[2]} × {x.shape[3]}"
            raise ValueError(f"an image of {sides}: both must be multiples of {2**self.depth}")
        kept = []
        for level, block in enumerate(self.down):
            x = self.run(block, self.pool(x) if level else x)
            kept.append(x)
            yield x
        x = self.drop(kept.pop())
        for grow, block in zip(self.grow, self.up, strict=True):
            # Joined with what comes from below: what the contracting path had at this size.
            x = self.run(block, torch.cat([kept.pop(), grow(x)], 1))
            yield x

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, width, H, W) → logits (B, K, H, W), or the features if ``pre_logits``."""
        return features if pre_logits else self.head(features)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {"down": r"^down\.(\d+)\.", "up": r"^(?:grow|up)\.(\d+)\."}

    def make_classifier(self, num_classes: int) -> nn.Module:
        head = nn.Conv2d(self.num_features, num_classes, 1) if num_classes else nn.Identity()
        init_head(head)
        return head
