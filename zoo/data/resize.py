"""The evaluation crop as arithmetic, for files that leave PyTorch's image kernels behind."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from zoo.errors import UserError


def _triangle(x: Tensor) -> Tensor:
    return (1 - x.abs()).relu()


def _cubic(x: Tensor) -> Tensor:
    """Keys, "Cubic convolution interpolation", 1981, with a = -1/2."""
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


FILTERS: dict[str, Callable[[Tensor], Tensor]] = {"bilinear": _triangle, "bicubic": _cubic}


class Crop(nn.Module):
    """Resizes images of any size by their shorter side, and keeps the center.

    Computes what ``evaluation_crop`` computes of uint8 images on a processor with AVX2, to the bit:
    each pass is a matrix product with weights in fixed point, and gives whole numbers. No step
    depends on the size in Python, so that one exported program takes every size.

    Args:
        size: height and width that are kept.
        crop_pct: the part of the shorter side that is kept.
        interpolation: ``bilinear`` or ``bicubic``.

    Raises:
        UserError: another interpolation.
    """

    def __init__(self, size: list[int], crop_pct: float = 1.0, interpolation: str = "bilinear"):
        super().__init__()
        if interpolation not in FILTERS:
            raise UserError(
                f"images are resized by {interpolation}, which no exported file does: leave "
                "preprocessing away, or resize by bilinear or bicubic"
            )
        self.size, self.shorter = size, round(min(size) / crop_pct)
        self.filter = FILTERS[interpolation]

    def forward(self, images: Tensor) -> Tensor:
        """uint8 (B, C, H, W) → float64 (B, C, h, w), whole numbers from 0 to 255."""
        height, width = (torch.ones_like(images[0, 0].select(d, 0)).long().sum() for d in (1, 0))
        shorter = torch.minimum(height, width)
        across = self._weights(images.shape[3], width, shorter, self.size[1])
        down = self._weights(images.shape[2], height, shorter, self.size[0])
        rows = _whole(images.double() @ across.T)
        return _whole(down @ rows)

    def _weights(self, length: int, counted: Tensor, shorter: Tensor, kept: int) -> Tensor:
        """What each pixel of a side counts for in each that is kept: (kept, length)."""
        resized = self.shorter * counted // shorter
        spare = resized - kept
        first = (spare / 2).double().round()  # half to even, as torchvision crops
        first = torch.where(spare < 0, -((-spare) // 2).double(), first)  # and pads
        indices = first + torch.arange(kept, dtype=torch.float64)
        # The first and the last pixel too: theirs are the largest weights.
        indices = torch.cat([indices, torch.stack([0 * resized, resized - 1]).double()])
        scale = counted.double() / resized
        centers = scale * (indices + 0.5)
        pixels = torch.arange(length, dtype=torch.float64) + 0.5
        weights = self.filter((pixels - centers[:, None]) / scale.clamp(min=1))
        inside = (indices >= 0) & (indices < resized)
        weights = weights * (inside / weights.sum(1).where(inside, 1.0))[:, None]
        # As many bits as the largest weight leaves in 16.
        units = 2.0 ** torch.arange(23, dtype=torch.float64)
        fits = (0.5 + weights.max() * 2 * units).floor() < 2**15
        unit = units[fits.sum().clamp(max=22)]
        return ((weights * unit).abs() + 0.5).floor()[:kept] * weights[:kept].sign() / unit


def _whole(values: Tensor) -> Tensor:
    return (values + 0.5).floor().clamp(0, 255)
