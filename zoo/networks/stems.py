"""A few convolutions that turn an image into a transformer's tokens, in place of plain patches.

Shapes: B batch, C channels, H height, W width, D embedding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn


class ConvPair(nn.Module):
    """ReLU, 3 × 3 convolution, ReLU, 3 × 3 convolution, added to the input (He et al. 2016)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → the same."""
        return x + self.conv2(self.conv1(x.relu()).relu())


class ConvEmbed(nn.Sequential):
    """Stages of a 3 × 3 convolution, strided or not, and residual pairs; then a 1 × 1.

    Neighboring patches overlap, which a small transformer on little data does not learn by
    itself; as Xiao et al. 2021, "Early Convolutions Help Transformers See Better", section 4, but
    with residual pairs in place of BatchNorm. The tokens are those of a small convolutional
    network (the hybrid of Dosovitskiy et al. 2021, section 3.1).
    """

    def __init__(
        self, in_channels: int, dim: int, patch_size: int, stages: Sequence[Sequence[int]] | None
    ) -> None:
        steps = int(math.log2(patch_size))
        if 2**steps != patch_size or steps < 1:
            raise ValueError(
                f"patch_size is {patch_size}: a conv stem needs a power of two, from 2 up"
            )
        if stages is None:
            stages = [(dim // 2 ** (steps - 1 - step), 1, 2) for step in range(steps)]
        given = [list(stage) for stage in stages]
        if any(len(s) != 3 or s[0] < 1 or s[1] < 0 or s[2] not in (1, 2) for s in given):
            raise ValueError(
                f"stem_stages: each is channels, residual pairs and a stride of 1 or 2; got {given}"
            )
        if math.prod(stride for _, _, stride in given) != patch_size:
            raise ValueError(
                f"stem_stages: the strides of {given} make no patch_size of {patch_size}"
            )
        layers: list[nn.Module] = []
        channels = in_channels
        for width, pairs, stride in stages:
            layers.append(nn.Conv2d(channels, width, 3, stride, padding=1, bias=False))
            layers += [ConvPair(width) for _ in range(pairs)]
            channels = width
        super().__init__(*layers, nn.Conv2d(channels, dim, 1))
