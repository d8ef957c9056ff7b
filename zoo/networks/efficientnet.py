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
from collections.abc import Sequence

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.networks.layers import (
    ImageNetwork,
    check_rates,
    check_sizes,
    global_average,
    init_he,
    scale_channels,
)

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


def round_channels(channels: float, divisor: int = 8) -> int:
    """The nearest multiple of 8, never more than 10 % below (as in Tan & Le's code)."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


class SiLU(nn.SiLU):
    """``nn.SiLU``, in place where nothing is to be differentiated: a prediction is faster by that.

    What it overwrites is a BatchNorm's or a convolution's output, which nobody else reads.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Any shape → the same."""
        return F.silu(input, inplace=not torch.is_grad_enabled())


class SqueezeExcite(nn.Module):
    """Channels weighed by a gate that sees all positions (Hu et al. 2018, section 3)."""

    def __init__(self, channels: int, reduced: int) -> None:
        super().__init__()
        self.conv_reduce = nn.Conv2d(channels, reduced, 1)
        self.act = SiLU()
        self.conv_expand = nn.Conv2d(reduced, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → the same."""
        means = global_average(x)[:, :, None, None]
        gate = self.conv_expand(self.act(self.conv_reduce(means))).sigmoid()
        return scale_channels(x, gate.flatten(1))


class Separable(nn.Module):
    """Depthwise and pointwise convolution: the block without expansion."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int, drop_path: float
    ) -> None:
        super().__init__()
        self.has_skip = stride == 1 and in_channels == out_channels
        self.conv_dw = Depthwise(in_channels, kernel, stride)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.act = SiLU()
        self.se = SqueezeExcite(in_channels, max(1, round(in_channels / 4)))
        self.conv_pw = pointwise(in_channels, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) → (B, out_channels, H / stride, W / stride)."""
        out = self.se(self.act(self.bn1(self.conv_dw(x))))
        out = self.bn2(self.conv_pw(out))
        return x + self.drop_path(out) if self.has_skip else out


class MBConv(nn.Module):
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
        super().__init__()
        self.has_skip = stride == 1 and in_channels == out_channels
        wide = round_channels(in_channels * expansion)
        self.conv_pw = pointwise(in_channels, wide)
        self.bn1 = nn.BatchNorm2d(wide)
        self.conv_dw = Depthwise(wide, kernel, stride)
        self.bn2 = nn.BatchNorm2d(wide)
        self.act = SiLU()
        # A quarter of the block's input, not of the expanded channels (Tan & Le's code).
        self.se = SqueezeExcite(wide, max(1, round(in_channels / 4)))
        self.conv_pwl = pointwise(wide, out_channels)
        self.bn3 = nn.BatchNorm2d(out_channels)  # and no activation: the bottleneck is linear
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) → (B, out_channels, H / stride, W / stride)."""
        out = self.act(self.bn1(self.conv_pw(x)))
        out = self.se(self.act(self.bn2(self.conv_dw(out))))
        out = self.bn3(self.conv_pwl(out))
        return x + self.drop_path(out) if self.has_skip else out


class FusedMBConv(nn.Module):
    """One whole convolution in place of expansion and depthwise one, then the projection.

    For early stages, where channels are few and positions many: more multiplications, but fewer
    values to move and to normalise (Tan & Le 2021, section 3.2, figure 2). No squeeze-excitation.
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
        super().__init__()
        self.has_skip = stride == 1 and in_channels == out_channels
        wide = round_channels(in_channels * expansion)
        self.conv_exp = nn.Conv2d(in_channels, wide, kernel, stride, kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(wide)
        self.act = SiLU()
        self.conv_pwl = pointwise(wide, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)  # and no activation
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) → (B, out_channels, H / stride, W / stride)."""
        out = self.bn2(self.conv_pwl(self.act(self.bn1(self.conv_exp(x)))))
        return x + self.drop_path(out) if self.has_skip else out


def pointwise(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 1, bias=False)


class Depthwise(nn.Conv2d):
    """One filter for each channel; the image keeps its size, or is subsampled by the stride."""

    def __init__(self, channels: int, kernel: int, stride: int) -> None:
        super().__init__(
            channels, channels, kernel, stride, kernel // 2, groups=channels, bias=False
        )

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, H / stride, W / stride)."""
        half = input.dtype.itemsize == 2 or torch.is_autocast_enabled("cpu")
        slow = input.device.type == "cpu" and half and self.stride != (1, 1)
        if not (slow and torch.is_grad_enabled()):
            return super().forward(input)
        # A CPU has no fast gradient for a stride in half precision: that of the whole convolution,
        # of which these are every second row and column, takes a fraction of the time.
        whole = F.conv2d(input, self.weight, None, 1, self.padding, self.dilation, self.groups)
        return whole[:, :, :: self.stride[0], :: self.stride[1]]


class EfficientNet(ImageNetwork):
    """An EfficientNet for images of any size.

    Args:
        num_classes: size of the output; 0 returns pooled features.
        in_channels: 1 for grey images, 3 for colour.
        stages: of each: expansion, channels, blocks, kernel, stride; B0's by default.
        width: multiplies all channels.
        depth: multiplies the blocks of every stage, rounded up.
        stem_channels, head_channels: of the first and the last convolution, before ``width``.
        stem_stride: 2, or 1 for small images.
        fused: so many stages, from the first, have fused blocks (``FusedMBConv``).
        drop_rate: of the dropout before the classifier.
        drop_path_rate: of stochastic depth, towards the last block; it grows linearly from 0.

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
            raise ValueError(f"fused is {fused}: there are {len(stages)} stages")
        if width <= 0 or depth <= 0:
            raise ValueError(f"width {width} and depth {depth} must be above 0")
        check_rates(drop_rate=drop_rate, drop_path_rate=drop_path_rate)
        check_sizes(num_classes, in_channels=in_channels, stem_stride=stem_stride)

        channels = round_channels(stem_channels * width)
        self.conv_stem = nn.Conv2d(in_channels, channels, 3, stem_stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act = SiLU()

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

        features = round_channels(head_channels * width)
        self.conv_head = pointwise(channels, features)
        self.bn2 = nn.BatchNorm2d(features)
        self.drop = nn.Dropout(drop_rate)
        self.num_features, self.num_classes = features, num_classes
        self.classifier: nn.Module = (
            nn.Linear(features, num_classes) if num_classes else nn.Identity()
        )
        init_he(self)

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → feature maps (B, num_features, H', W')."""
        x = self.blocks(self.act(self.bn1(self.conv_stem(x))))
        return self.act(self.bn2(self.conv_head(x)))

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, num_features, H', W') → logits (B, K), or (B, num_features) if ``pre_logits``."""
        pooled = global_average(features)
        return pooled if pre_logits else self.classifier(self.drop(pooled))

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W), normalised → logits (B, K)."""
        return self.forward_head(self.forward_features(x))


def efficientnet_b0(
    num_classes: int = 1000,
    in_channels: int = 3,
    drop_rate: float = 0.2,
    drop_path_rate: float = 0.2,
) -> EfficientNet:
    """EfficientNet-B0, for 224 × 224: 5.3 M parameters at 1000 classes."""
    return _scaled(1.0, 1.0, num_classes, in_channels, drop_rate, drop_path_rate)


def efficientnet_b1(
    num_classes: int = 1000,
    in_channels: int = 3,
    drop_rate: float = 0.2,
    drop_path_rate: float = 0.2,
) -> EfficientNet:
    """EfficientNet-B1, for 240 × 240: 7.8 M parameters at 1000 classes."""
    return _scaled(1.0, 1.1, num_classes, in_channels, drop_rate, drop_path_rate)


def efficientnet_b2(
    num_classes: int = 1000,
    in_channels: int = 3,
    drop_rate: float = 0.3,
    drop_path_rate: float = 0.2,
) -> EfficientNet:
    """EfficientNet-B2, for 260 × 260: 9.1 M parameters at 1000 classes."""
    return _scaled(1.1, 1.2, num_classes, in_channels, drop_rate, drop_path_rate)


def efficientnet_b3(
    num_classes: int = 1000,
    in_channels: int = 3,
    drop_rate: float = 0.3,
    drop_path_rate: float = 0.2,
) -> EfficientNet:
    """EfficientNet-B3, for 300 × 300: 12.2 M parameters at 1000 classes."""
    return _scaled(1.2, 1.4, num_classes, in_channels, drop_rate, drop_path_rate)


def efficientnet_b4(
    num_classes: int = 1000,
    in_channels: int = 3,
    drop_rate: float = 0.4,
    drop_path_rate: float = 0.2,
) -> EfficientNet:
    """EfficientNet-B4, for 380 × 380: 19.3 M parameters at 1000 classes."""
    return _scaled(1.4, 1.8, num_classes, in_channels, drop_rate, drop_path_rate)


def efficientnet_small(
    num_classes: int = 10,
    in_channels: int = 1,
    drop_rate: float = 0.2,
    drop_path_rate: float = 0.05,
) -> EfficientNet:
    """For 28 × 28 to 32 × 32 images: 0.45 M parameters at 10 classes; the one of the recipes."""
    return EfficientNet(
        num_classes,
        in_channels,
        stages=((2, 48, 2, 3, 1), (2, 64, 2, 3, 2), (3, 96, 3, 3, 1)),
        stem_channels=48,
        fused=2,
        head_channels=384,
        drop_rate=drop_rate,
        drop_path_rate=drop_path_rate,
    )


def _scaled(
    width: float,
    depth: float,
    num_classes: int,
    in_channels: int,
    drop_rate: float,
    drop_path_rate: float,
) -> EfficientNet:
    return EfficientNet(
        num_classes,
        in_channels,
        width=width,
        depth=depth,
        drop_rate=drop_rate,
        drop_path_rate=drop_path_rate,
    )
