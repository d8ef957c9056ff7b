"""Inverted residuals, of which EfficientNets are made, with squeeze-and-excitation and SiLU.

Sandler et al., CVPR 2018, section 3; Hu et al., "Squeeze-and-Excitation Networks", CVPR 2018,
section 3. BatchNorm after every convolution, no dropout; a branch may be dropped whole.

Shapes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.networks.fast import global_average, scale_channels


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
        self.conv_dw = Depthwise(in_channels, kernel, stride)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.act = SiLU()
        self.se = SqueezeExcite(in_channels, max(1, round(in_channels / 4)))
        self.conv_pw = pointwise(in_channels, out_channels)
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
        self.conv_pw = pointwise(in_channels, wide)
        self.bn1 = nn.BatchNorm2d(wide)
        self.conv_dw = Depthwise(wide, kernel, stride)
        self.bn2 = nn.BatchNorm2d(wide)
        self.act = SiLU()
        # A quarter of the block's input, not of the expanded channels (Tan & Le's code).
        self.se = SqueezeExcite(wide, max(1, round(in_channels / 4)))
        self.conv_pwl = pointwise(wide, out_channels)
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
        self.act = SiLU()
        self.conv_pwl = pointwise(wide, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)  # and no activation

    def branch(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv_pwl(self.act(self.bn1(self.conv_exp(x)))))
