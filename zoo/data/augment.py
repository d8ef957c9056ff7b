"""Augmentation of whole batches on the device: a draw for every sample, no loop over them."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def shift_and_flip(
    images: Tensor, shift: int, flip: bool, generator: torch.Generator | None = None
) -> Tensor:
    """Moves each image by up to ``shift`` pixels each way, zeros coming in, and mirrors half.

    The batched form of random cropping with padding (He et al. 2016, section 4.2).

    Args:
        images: (B, C, H, W), any type.
        shift: pixels, at most; 0 leaves images where they are.
        flip: mirror left and right with probability 1/2.
        generator: on the images' device.

    Returns:
        (B, C, H, W), the same type.
    """
    if not shift and not flip:
        return images
    batch, _, height, width = images.shape
    device = images.device
    mirrored = None
    if flip:
        mirrored = torch.rand(batch, 1, 1, 1, device=device, generator=generator) < 0.5
    if shift:
        padded = F.pad(images, (shift,) * 4)
        top, left = torch.randint(0, 2 * shift + 1, (2, batch), device=device, generator=generator)
        # Every window of the padded images, as a view; one is copied of each. A gather by pixels
        # would need an index eight times as large as the images.
        windows = padded.unfold(2, height, 1).unfold(3, width, 1)
        images = windows[torch.arange(batch, device=device), :, top, left]
    if mirrored is not None:
        images = torch.where(mirrored, images.flip(3), images)
    return images


def move(images: Tensor, offsets: Tensor, fill: float = 0.0) -> Tensor:
    """Moves each image by offsets of its own, as ``shift_and_flip`` does, for a gradient to pass.

    Args:
        images: (B, C, H, W).
        offsets: whole pixels (2, B), down and to the right.
        fill: what comes in.

    Returns:
        (B, C, H, W), the same type.
    """
    height, width = images.shape[2:]
    down, right = offsets[:, :, None]
    row = torch.arange(height, device=images.device) - down
    column = torch.arange(width, device=images.device) - right
    inside = ((row >= 0) & (row < height))[:, :, None] & ((column >= 0) & (column < width))[:, None]
    # A gather by pixels: the gradient of a view of every window would be as large as all of them.
    index = row.clamp(0, height - 1)[:, :, None] * width + column.clamp(0, width - 1)[:, None]
    flat = images.flatten(2)
    moved = flat.gather(2, index.flatten(1)[:, None].expand(flat.shape)).view(images.shape)
    return torch.where(inside[:, None], moved, fill)


def cutout(
    images: Tensor, size: int, probability: float = 1.0, generator: torch.Generator | None = None
) -> Tensor:
    """Blanks a ``size`` × ``size`` square of each image, with its center anywhere in the image.

    DeVries & Taylor 2017, section 3.2: the square may reach over the border.

    Args:
        images: (B, C, H, W); 0 is what a blank pixel becomes.
        size: pixels; 0 does nothing.
        probability: that an image gets a square at all.
        generator: on the images' device.

    Returns:
        (B, C, H, W), the same type.
    """
    if not size or not probability:
        return images
    batch, _, height, width = images.shape
    device = images.device
    top = torch.randint(0, height, (batch, 1), device=device, generator=generator) - size // 2
    left = torch.randint(0, width, (batch, 1), device=device, generator=generator) - size // 2
    chosen = torch.rand(batch, 1, device=device, generator=generator) < probability
    row = torch.arange(height, device=device)
    column = torch.arange(width, device=device)
    # Numbers, not booleans: their product over all pixels is vectorized.
    rows = ((row >= top) & (row < top + size) & chosen).to(images.dtype)
    columns = ((column >= left) & (column < left + size)).to(images.dtype)
    return images * (1 - rows[:, :, None] * columns[:, None, :])[:, None]


def erase(images: Tensor, probability: float, generator: torch.Generator | None = None) -> Tensor:
    """Replaces a random rectangle of each chosen image by noise (Zhong et al., AAAI 2020).

    The rectangle covers 2 to 33 % of the image and is 0.3 to 3.3 times as high as wide, as in
    the paper's section 3; it lies inside the image. Noise, unlike the black of ``cutout``, cannot
    be taken for a dark background: a pullover without its sleeves would be a dress.

    Args:
        images: uint8 (B, C, H, W).
        probability: that an image is erased.
        generator: on the images' device.

    Returns:
        (B, C, H, W), uint8.
    """
    if not probability:
        return images
    batch, _, height, width = images.shape
    device = images.device
    chance, area, ratio, down, right = torch.rand(5, batch, 1, device=device, generator=generator)
    area = (0.02 + 0.31 * area) * height * width
    ratio = torch.exp(math.log(0.3) + (math.log(3.3) - math.log(0.3)) * ratio)
    high = (area * ratio).sqrt().round().clamp(1, height)
    wide = (area / ratio).sqrt().round().clamp(1, width)
    top, left = (down * (height - high + 1)).floor(), (right * (width - wide + 1)).floor()
    row = torch.arange(height, device=device)
    column = torch.arange(width, device=device)
    rows = (row >= top) & (row < top + high) & (chance < probability)
    columns = (column >= left) & (column < left + wide)
    noise = torch.randint(
        0, 256, images.shape, dtype=torch.uint8, device=device, generator=generator
    )
    return torch.where((rows[:, :, None] & columns[:, None, :])[:, None], noise, images)
