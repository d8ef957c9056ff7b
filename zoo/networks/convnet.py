"""Plain convolutional networks, small, medium and large, to see what each technique does.

Batch normalisation, dropout, and the order of the two are switches, so that one file is every arm
of the classic experiment: none, either, both. The right order is convolution, BatchNorm,
activation, dropout (Ioffe & Szegedy 2015, section 3.2; Li et al., CVPR 2019, section 5).

On feature maps dropout is spatial, whole channels at a time (Tompson et al., CVPR 2015, section
3.2); on fully connected layers it is element-wise. With BatchNorm in the network, spatial dropout
after every block would stand before the next block's BatchNorm: ``spatial="last"`` drops after the
last BatchNorm only.

Shapes: B batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from zoo.networks.layers import Network, init_he

# Channels of the convolutions in each stage, and hidden units of the head.
SIZES: dict[str, tuple[list[list[int]], list[int]]] = {
    "small": ([[8], [16]], []),  # fewer parameters than LeNet-5
    "medium": ([[32], [64], [128]], [128]),
    "large": ([[48, 48], [96, 96], [192, 192]], [256]),
}
GRID = 3  # positions a side that the head sees


class ConvBlock(nn.Module):
    """Convolution, then BatchNorm, ReLU and spatial dropout in either order."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        batch_norm: bool,
        drop_rate: float,
        order: Literal["norm-first", "drop-first"],
    ) -> None:
        super().__init__()
        # A bias before BatchNorm would be subtracted again.
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=not batch_norm)
        self.norm = nn.BatchNorm2d(out_channels) if batch_norm else nn.Identity()
        self.act = nn.ReLU(inplace=True)
        self.drop = nn.Dropout2d(drop_rate) if drop_rate else nn.Identity()
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) → (B, out_channels, H, W)."""
        x = self.conv(x)
        if self.order == "drop-first":
            return self.act(self.norm(self.drop(x)))
        return self.drop(self.act(self.norm(x)))


class ConvNet(Network):
    """A plain CNN for small images of any size: stages of 3 × 3 convolutions and max pooling.

    Args:
        num_classes: size of the output; 0 returns the last hidden features.
        in_channels: 1 for grey images, 3 for colour.
        size: ``small`` (2.7 thousand parameters at 10 classes), ``medium`` (0.24 M) or ``large``
            (1.1 M).
        batch_norm: after every convolution.
        drop_rate: of element-wise dropout before each fully connected layer.
        spatial_drop_rate: of spatial dropout on feature maps.
        spatial: where spatial dropout stands: after the ``last`` convolution, or after ``every``
            one, which with BatchNorm shifts the variance of the next (``zoo.audit`` says so).
        order: ``norm-first`` is convolution, BatchNorm, ReLU, dropout; ``drop-first`` puts dropout
            in front of BatchNorm, to be seen failing.

    Raises:
        ValueError: an unknown size, order or place, or a rate outside [0, 1).
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 1,
        size: Literal["small", "medium", "large"] = "medium",
        batch_norm: bool = True,
        drop_rate: float = 0.0,
        spatial_drop_rate: float = 0.0,
        spatial: Literal["last", "every"] = "last",
        order: Literal["norm-first", "drop-first"] = "norm-first",
    ) -> None:
        super().__init__()
        if size not in SIZES:
            raise ValueError(f"size is {size!r}: choose one of {', '.join(SIZES)}")
        if spatial not in ("last", "every"):
            raise ValueError(f"spatial is {spatial!r}: choose last or every")
        if order not in ("norm-first", "drop-first"):
            raise ValueError(f"order is {order!r}: choose norm-first or drop-first")
        for name, rate in (("drop_rate", drop_rate), ("spatial_drop_rate", spatial_drop_rate)):
            if not 0 <= rate < 1:
                raise ValueError(f"{name} is {rate}: it must be at least 0 and below 1")
        if in_channels < 1 or num_classes < 0:
            raise ValueError("in_channels must be at least 1, num_classes at least 0")
        stages, hidden = SIZES[size]

        channels = in_channels
        self.stages = nn.ModuleList()
        for index, widths in enumerate(stages):
            blocks: list[nn.Module] = []
            for number, width in enumerate(widths):
                last = index == len(stages) - 1 and number == len(widths) - 1
                rate = spatial_drop_rate if last or spatial == "every" else 0.0
                blocks.append(ConvBlock(channels, width, batch_norm, rate, order))
                channels = width
            # Rounding up keeps a map of one position alive.
            self.stages.append(nn.Sequential(*blocks, nn.MaxPool2d(2, ceil_mode=True)))
        self.pool = nn.AdaptiveAvgPool2d(GRID)

        features = channels * GRID**2
        layers: list[nn.Module] = []
        for width in hidden:
            layers += [nn.Dropout(drop_rate), nn.Linear(features, width), nn.ReLU(inplace=True)]
            features = width
        self.hidden = nn.Sequential(*layers)
        self.drop = nn.Dropout(drop_rate)
        self.num_features, self.num_classes = features, num_classes
        self.fc: nn.Module = nn.Linear(features, num_classes) if num_classes else nn.Identity()
        init_he(self)

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → feature maps (B, C', 3, 3)."""
        for stage in self.stages:
            x = stage(x)
        return self.pool(x)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, C', 3, 3) → logits (B, K), or (B, num_features) if ``pre_logits``."""
        hidden = self.hidden(torch.flatten(features, 1))
        return hidden if pre_logits else self.fc(self.drop(hidden))

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W), normalised → logits (B, K)."""
        return self.forward_head(self.forward_features(x))
