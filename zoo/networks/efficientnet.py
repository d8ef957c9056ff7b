"""EfficientNet: BatchNorm after every convolution, dropout in the head only, stochastic depth.

Tan & Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML 2019:
inverted residuals (Sandler et al., CVPR 2018, section 3) with squeeze-and-excitation (Hu et al.,
CVPR 2018, section 3) and SiLU, scaled in width, depth and resolution together (section 3.3). Early
stages may have the fused blocks of Tan & Le, "EfficientNetV2", ICML 2021, section 3.2.
Parameter names are timm's, so that published weights load with ``strict=True``.

Dropout stands after the last BatchNorm, before the classifier, and nowhere else. Residual branches
are dropped whole (stochastic depth: Huang et al., ECCV 2016), with a rate that grows linearly with
the block, from 0 at the first of L to ``drop_path_rate`` · (L - 1) / L at the last.

Shapes: B batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypedDict, Unpack

from timm.layers import DropPath
from torch import Tensor, nn

from zoo.networks.base import JOINS_PREVIOUS, ImageNetwork, check_rates, check_sizes
from zoo.networks.initializers import init_he
from zoo.networks.layers import conv1x1


def round_channels(channels: float, divisor: int = 8) -> int:
    """The nearest multiple of 8, never more than 10 % below (as in Tan & Le's code)."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


def depthwise(channels: int, kernel: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, kernel, stride, kernel // 2, groups=channels, bias=False)


class SqueezeExcite(nn.Module):
    """Channels weighed by a gate that sees all positions (Hu et al. 2018, section 3)."""

    def __init__(self, channels: int, reduced: int) -> None:
        super().__init__()
        self.conv_reduce = nn.Conv2d(channels, reduced, 1)
        self.act = nn.SiLU()
        self.conv_expand = nn.Conv2d(reduced, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → the same."""
        means = x.mean((2, 3), keepdim=True)
        gate = self.conv_expand(self.act(self.conv_reduce(means))).sigmoid()
        return x * gate


class Residual(nn.Module):
    """A branch, added to its input where the two have one shape; it may be dropped whole."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, drop_path: float) -> None:
        super().__init__()
        self.has_skip = stride == 1 and in_channels == out_channels
        self.drop_path = DropPath(drop_path)

    def branch(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) → (B, out_channels, H / stride, W / stride)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) → (B, out_channels, H / stride, W / stride)."""
        out = self.branch(x)
        return x + self.drop_path(out) if self.has_skip else out


class Separable(Residual):
    """Depthwise and pointwise convolution: the block without expansion."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int, drop_path: float
    ) -> None:
        super().__init__(in_channels, out_channels, stride, drop_path)
        self.conv_dw = depthwise(in_channels, kernel, stride)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.act = nn.SiLU()
        self.se = SqueezeExcite(in_channels, max(1, round(in_channels / 4)))
        self.conv_pw = conv1x1(in_channels, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)

    def branch(self, x: Tensor) -> Tensor:
        out = self.se(self.act(self.bn1(self.conv_dw(x))))
        return self.bn2(self.conv_pw(out))


class MBConv(Residual):
    """Expand, depthwise, squeeze-excite, project: an inverted residual (Sandler et al. 2018)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int,
        expansion: int,
        drop_path: float,
    ) -> None:
        super().__init__(in_channels, out_channels, stride, drop_path)
        wide = round_channels(in_channels * expansion)
        self.conv_pw = conv1x1(in_channels, wide)
        self.bn1 = nn.BatchNorm2d(wide)
        self.conv_dw = depthwise(wide, kernel, stride)
        self.bn2 = nn.BatchNorm2d(wide)
        self.act = nn.SiLU()
        # A quarter of the block's input, not of the expanded channels (Tan & Le's code).
        self.se = SqueezeExcite(wide, max(1, round(in_channels / 4)))
        self.conv_pwl = conv1x1(wide, out_channels)
        self.bn3 = nn.BatchNorm2d(out_channels)  # and no activation: the bottleneck is linear

    def branch(self, x: Tensor) -> Tensor:
        out = self.act(self.bn1(self.conv_pw(x)))
        out = self.se(self.act(self.bn2(self.conv_dw(out))))
        return self.bn3(self.conv_pwl(out))


class FusedMBConv(Residual):
    """One whole convolution in place of expansion and depthwise one, then the projection.

    For early stages, where channels are few and positions many: more multiplications, but fewer
    values to move and to normalize (Tan & Le 2021, section 3.2, figure 2). No squeeze-excitation.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int,
        expansion: int,
        drop_path: float,
    ) -> None:
        super().__init__(in_channels, out_channels, stride, drop_path)
        wide = round_channels(in_channels * expansion)
        self.conv_exp = nn.Conv2d(in_channels, wide, kernel, stride, kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(wide)
        self.act = nn.SiLU()
        self.conv_pwl = conv1x1(wide, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)  # and no activation

    def branch(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv_pwl(self.act(self.bn1(self.conv_exp(x)))))


# Of B0 (Tan & Le 2019, table 1): expansion, channels, blocks, kernel, stride.
B0_STAGES = (
    (1, 16, 1, 3, 1),
    (6, 24, 2, 3, 2),
    (6, 40, 2, 5, 2),
    (6, 80, 3, 3, 2),
    (6, 112, 3, 5, 1),
    (6, 192, 4, 5, 2),
    (6, 320, 1, 3, 1),
)


class DropRates(TypedDict, total=False):
    """The rates that ``EfficientNet`` has; its defaults where a preset names no others."""

    drop_rate: float
    drop_path_rate: float


class EfficientNet(ImageNetwork):
    """An EfficientNet for images of any size.

    Args:
        num_classes: size of the output; 0 returns pooled features.
        in_channels: 1 for grayscale images, 3 for color.
        stages: five numbers a stage: expansion, channels, blocks, kernel, stride; B0's by default.
        width: multiplies all channels.
        depth: multiplies the blocks of every stage, rounded up.
        stem_channels, head_channels: of the first and the last convolution, before ``width``.
        stem_stride: 2, or 1 for small images.
        fused: number of stages, from the first, with fused blocks (``FusedMBConv``).
        drop_rate: rate of the dropout before the classifier.
        drop_path_rate: rate of stochastic depth, towards the last block; it grows linearly from 0.

    Raises:
        ValueError: a stage that is not five numbers, an even kernel, more fused stages than there
            are, a size below one, or a rate outside [0, 1).
    """

    classifier_name = "classifier"

    def __init__(
        self,
        num_classes: int = 1000,
        in_channels: int = 3,
        stages: Sequence[Sequence[int]] = B0_STAGES,
        width: float = 1.0,
        depth: float = 1.0,
        stem_channels: int = 32,
        head_channels: int = 1280,
        stem_stride: int = 2,
        fused: int = 0,
        drop_rate: float = 0.2,
        drop_path_rate: float = 0.2,
    ) -> None:
        super().__init__()
        if not stages or any(len(stage) != 5 or min(stage) < 1 for stage in stages):
            raise ValueError(
                "stages: each is five numbers from 1 up: expansion, channels, blocks, kernel, "
                f"stride; got {[list(stage) for stage in stages]}"
            )
        even = [stage[3] for stage in stages if stage[3] % 2 == 0]
        if even:
            raise ValueError(f"stages: a kernel of {even[0]} has no middle: give an odd one")
        if not 0 <= fused <= len(stages):
            raise ValueError(f"fused is {fused}: of stages, give 0 to {len(stages)}")
        if width <= 0 or depth <= 0:
            raise ValueError(f"width {width} and depth {depth} must be above 0")
        check_rates(drop_rate=drop_rate, drop_path_rate=drop_path_rate)
        check_sizes(num_classes, in_channels=in_channels, stem_stride=stem_stride)

        channels = round_channels(stem_channels * width)
        self.conv_stem = nn.Conv2d(in_channels, channels, 3, stem_stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act = nn.SiLU()

        repeats = [math.ceil(stage[2] * depth) for stage in stages]
        total, done = sum(repeats), 0
        self.blocks = nn.Sequential()
        for (expansion, out, _, kernel, first_stride), count in zip(stages, repeats, strict=True):
            out_channels = round_channels(out * width)
            blocks: list[nn.Module] = []
            for index in range(count):
                stride = first_stride if index == 0 else 1
                rate = drop_path_rate * done / total  # the linear rule
                if len(self.blocks) < fused:
                    block: nn.Module = FusedMBConv(
                        channels, out_channels, kernel, stride, expansion, rate
                    )
                elif expansion == 1:
                    block = Separable(channels, out_channels, kernel, stride, rate)
                else:
                    block = MBConv(channels, out_channels, kernel, stride, expansion, rate)
                blocks.append(block)
                channels, done = out_channels, done + 1
            self.blocks.append(nn.Sequential(*blocks))

        # A resolution ends where the next stage halves it, as timm counts.
        self.stage_ends = [*(stage[4] > 1 for stage in stages[1:]), True]
        self.num_stages = sum(self.stage_ends)
        features = round_channels(head_channels * width)
        self.conv_head = conv1x1(channels, features)
        self.bn2 = nn.BatchNorm2d(features)
        self.drop = nn.Dropout(drop_rate)
        self.num_features, self.num_classes = features, num_classes
        self.classifier: nn.Module = (
            nn.Linear(features, num_classes) if num_classes else nn.Identity()
        )
        init_he(self)

    def forward_stages(self, x: Tensor) -> Iterator[Tensor]:
        """(B, C, H, W) → the maps of the last stage at each resolution."""
        x = self.act(self.bn1(self.conv_stem(x)))
        for stage, ends in zip(self.blocks, self.stage_ends, strict=True):
            x = self.run_stage(stage, x)
            if ends:
                yield x

    def forward_end(self, x: Tensor) -> Tensor:
        """The last stage's maps → feature maps (B, num_features, H', W')."""
        return self.act(self.bn2(self.conv_head(x)))

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, num_features, H', W') → logits (B, K), or (B, num_features) if ``pre_logits``."""
        pooled = features.mean((2, 3))
        return pooled if pre_logits else self.classifier(self.drop(pooled))

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        block = r"^blocks\.(\d+)\." if coarse else r"^blocks\.(\d+)\.(\d+)\."
        return {
            "stem": r"^(?:conv_stem|bn1)\.",
            "blocks": [(block, None), (r"^(?:conv_head|bn2)\.", JOINS_PREVIOUS)],
        }


def _scaled(
    name: str, width: float, depth: float, drop_rate: float, size: int, millions: float
) -> Callable[..., EfficientNet]:
    """Makes a preset of B0's stages, scaled in width and depth for images of ``size``."""

    def preset(
        num_classes: int = 1000, in_channels: int = 3, **rates: Unpack[DropRates]
    ) -> EfficientNet:
        rates = {"drop_rate": drop_rate, **rates}
        return EfficientNet(num_classes, in_channels, width=width, depth=depth, **rates)

    preset.__name__ = preset.__qualname__ = f"efficientnet_{name.lower()}"
    preset.__doc__ = (
        f"EfficientNet-{name}, for {size} × {size}: {millions} M parameters at 1000 classes; "
        f"dropout {drop_rate}."
    )
    return preset


# Tan & Le 2019, section 3.3, with the numbers of their code.
efficientnet_b0 = _scaled("B0", 1.0, 1.0, 0.2, 224, 5.3)
efficientnet_b1 = _scaled("B1", 1.0, 1.1, 0.2, 240, 7.8)
efficientnet_b2 = _scaled("B2", 1.1, 1.2, 0.3, 260, 9.1)
efficientnet_b3 = _scaled("B3", 1.2, 1.4, 0.3, 300, 12.2)
efficientnet_b4 = _scaled("B4", 1.4, 1.8, 0.4, 380, 19.3)
efficientnet_b5 = _scaled("B5", 1.6, 2.2, 0.4, 456, 30.4)
efficientnet_b6 = _scaled("B6", 1.8, 2.6, 0.5, 528, 43.0)
efficientnet_b7 = _scaled("B7", 2.0, 3.1, 0.5, 600, 66.3)


def efficientnet_small(
    num_classes: int = 10, in_channels: int = 1, **rates: Unpack[DropRates]
) -> EfficientNet:
    """For 28 × 28 to 32 × 32 images: 0.45 M parameters at 10 classes; the one of the recipes."""
    stages = ((2, 48, 2, 3, 1), (2, 64, 2, 3, 2), (3, 96, 3, 3, 1))
    rates = {"drop_path_rate": 0.05, **rates}
    return EfficientNet(
        num_classes, in_channels, stages, stem_channels=48, head_channels=384, fused=2, **rates
    )
