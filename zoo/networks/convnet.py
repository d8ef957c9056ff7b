"""Plain convolutional networks, small, medium and large, to see what each technique does.

Batch normalization, dropout, the order of the two and initial weights are switches, so that one
file is every arm of the classic experiment: none, either, both. The right order is convolution,
BatchNorm, activation, dropout (Ioffe & Szegedy 2015, section 3.2; Li et al., CVPR 2019, section 5).

On feature maps dropout is spatial, whole channels at a time (Tompson et al., CVPR 2015, section
3.2); on fully connected layers it is element-wise. With BatchNorm in the network, spatial dropout
after every block would stand before the next block's BatchNorm: ``spatial="last"`` drops after the
last BatchNorm only. The fully connected layers may drop Gaussian noise or weights in its place.

Weights start as the activation asks: He's variance for ReLU, Xavier's for tanh, unless ``init``
says otherwise.

Shapes: B batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from zoo.networks.base import ImageNetwork, check_choice, check_rates, check_sizes
from zoo.networks.initializers import DRAWS, init_he, init_weights, init_xavier
from zoo.networks.layers import DropConnect, GaussianDropout

# Channels of the convolutions in each stage, and hidden units of the head.
SIZES: dict[str, tuple[list[list[int]], list[int]]] = {
    "small": ([[8], [16]], []),  # fewer parameters than LeNet-5
    "medium": ([[32], [64], [128]], [128]),
    "large": ([[48, 48], [96, 96], [192, 192]], [256]),
}
GRID = 3  # positions a side that the head sees


Order = Literal["norm-first", "act-first", "drop-first"]


class ConvBlock(nn.Module):
    """Convolution, then BatchNorm, activation and spatial dropout in one of three orders."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        batch_norm: bool,
        drop_rate: float,
        order: Order,
        activation: Literal["relu", "tanh"],
    ) -> None:
        super().__init__()
        # A bias right before BatchNorm would be subtracted again.
        bias = not batch_norm or order == "act-first"
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=bias)
        self.norm = nn.BatchNorm2d(out_channels) if batch_norm else nn.Identity()
        self.act = make_activation(activation)
        self.drop = nn.Dropout2d(drop_rate) if drop_rate else nn.Identity()
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) → (B, out_channels, H, W)."""
        x = self.conv(x)
        if self.order == "drop-first":
            return self.act(self.norm(self.drop(x)))
        if self.order == "act-first":
            return self.drop(self.norm(self.act(x)))
        return self.drop(self.act(self.norm(x)))


def make_activation(activation: Literal["relu", "tanh"]) -> nn.Module:
    return nn.ReLU(inplace=True) if activation == "relu" else nn.Tanh()


class ConvNet(ImageNetwork):
    """A plain CNN for small images of any size: stages of 3 × 3 convolutions and max pooling.

    Args:
        num_classes: size of the output; 0 returns the last hidden features.
        in_channels: 1 for grayscale images, 3 for color.
        size: ``small`` (2.7 thousand parameters at 10 classes), ``medium`` (0.24 M) or ``large``
            (1.1 M).
        batch_norm: BatchNorm after every convolution.
        drop_rate: rate of the dropout before each fully connected layer.
        drop_kind: ``element-wise``; ``gaussian``, multiplication by noise of the same variance; or
            ``connect``, which drops the layers' weights and not their inputs.
        spatial_drop_rate: rate of spatial dropout on feature maps.
        spatial: place of spatial dropout: after the ``last`` convolution, or after ``every``
            one, which with BatchNorm shifts the variance of the next (``zoo.audit`` reports it).
        order: ``norm-first`` is convolution, BatchNorm, ReLU, dropout; ``act-first`` places
            BatchNorm after ReLU; ``drop-first`` places dropout before BatchNorm, to show the
            variance shift.
        activation: ``relu`` or ``tanh``.
        init: how all weights are drawn, a name of ``initializers.init_weights``: ``zero``,
            ``normal``, ``xavier``, ``he``, ``orthogonal`` or ``transformer``; by default
            ``init_he`` for ReLU and ``init_xavier`` for tanh.

    Raises:
        ValueError: an unknown choice, a size below one, or a rate outside [0, 1).
    """

    global_pools = ()  # the head sees a grid

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 1,
        size: Literal["small", "medium", "large"] = "medium",
        batch_norm: bool = True,
        drop_rate: float = 0.0,
        drop_kind: Literal["element-wise", "gaussian", "connect"] = "element-wise",
        spatial_drop_rate: float = 0.0,
        spatial: Literal["last", "every"] = "last",
        order: Order = "norm-first",
        activation: Literal["relu", "tanh"] = "relu",
        init: Literal["zero", "normal", "xavier", "he", "orthogonal", "transformer"] | None = None,
    ) -> None:
        super().__init__()
        check_choice("size", size, *SIZES)
        check_choice("drop_kind", drop_kind, "element-wise", "gaussian", "connect")
        check_choice("spatial", spatial, "last", "every")
        check_choice("order", order, "norm-first", "act-first", "drop-first")
        check_choice("activation", activation, "relu", "tanh")
        if init is not None:
            check_choice("init", init, *DRAWS)
        check_rates(drop_rate=drop_rate, spatial_drop_rate=spatial_drop_rate)
        check_sizes(num_classes, in_channels=in_channels)
        stages, hidden = SIZES[size]
        self.weight_drop_rate = drop_rate if drop_kind == "connect" else 0.0
        self.init: Callable[[nn.Module], None] = init_he if activation == "relu" else init_xavier
        if init is not None:
            self.init = partial(init_weights, kind=init)

        channels = in_channels
        self.stages = nn.ModuleList()
        self.num_stages = len(stages)
        for index, widths in enumerate(stages):
            blocks: list[nn.Module] = []
            for number, width in enumerate(widths):
                last = index == len(stages) - 1 and number == len(widths) - 1
                rate = spatial_drop_rate if last or spatial == "every" else 0.0
                blocks.append(ConvBlock(channels, width, batch_norm, rate, order, activation))
                channels = width
            # Rounding up keeps a map of one position alive.
            self.stages.append(nn.Sequential(*blocks, nn.MaxPool2d(2, ceil_mode=True)))
        self.pool = nn.AdaptiveAvgPool2d(GRID)

        features = channels * GRID**2
        layers: list[nn.Module] = []
        unit_drop_rate = drop_rate if drop_kind != "connect" else 0.0
        make_drop = GaussianDropout if drop_kind == "gaussian" else nn.Dropout
        for width in hidden:
            layers += [
                make_drop(unit_drop_rate),
                self.make_linear(features, width),
                make_activation(activation),
            ]
            features = width
        self.hidden = nn.Sequential(*layers)
        self.drop = make_drop(unit_drop_rate)
        self.num_features, self.num_classes = features, num_classes
        self.fc: nn.Module = (
            self.make_linear(features, num_classes) if num_classes else nn.Identity()
        )
        self.init(self)

    def forward_stages(self, x: Tensor) -> Iterator[Tensor]:
        """(B, C, H, W) → the maps of each stage, half as large as the last one's."""
        for stage in self.stages:
            x = self.run_stage(stage, x)
            yield x

    def forward_end(self, x: Tensor) -> Tensor:
        """The last stage's maps → feature maps (B, C', 3, 3)."""
        return self.pool(x)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, C', 3, 3) → logits (B, K), or (B, num_features) if ``pre_logits``."""
        hidden = self.hidden(torch.flatten(features, 1))
        return hidden if pre_logits else self.fc(self.drop(hidden))

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {
            "blocks": r"^stages\.(\d+)\." if coarse else r"^stages\.(\d+)\.(\d+)\.",
            "hidden": r"^hidden\.",
        }

    def make_linear(self, in_features: int, out_features: int) -> nn.Linear:
        rate = self.weight_drop_rate
        if rate:
            return DropConnect(in_features, out_features, rate)
        return nn.Linear(in_features, out_features)

    def make_classifier(self, num_classes: int) -> nn.Module:
        head = self.make_linear(self.num_features, num_classes) if num_classes else nn.Identity()
        self.init(head)
        return head
