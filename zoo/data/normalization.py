"""Pixels to zero mean and unit variance a channel, and back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Normalization:
    """Subtracts a mean and divides by a standard deviation, channel by channel.

    Args:
        mean, std: of each channel, of pixels in [0, 1].
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = list(mean), list(std)
        self._on: dict[torch.device, tuple[Tensor, Tensor, Tensor, Tensor]] = {}

    def _tensors(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Mean, deviation, and for bytes a scale and an offset: (C, 1, 1) each."""
        # Made once a device: as slow as normalizing itself, and a GPU would wait for the copy.
        if device not in self._on:
            mean = torch.tensor(self.mean, device=device)[:, None, None]
            std = torch.tensor(self.std, device=device)[:, None, None]
            self._on[device] = mean, std, 1 / (255 * std), mean / std
        return self._on[device]

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 images (B, C, H, W), or float ones in [0, 1] → float32, normalized."""
        mean, std, scale, offset = self._tensors(images.device)
        if images.dtype == torch.uint8:
            return images.float().mul_(scale).sub_(offset)
        return (images - mean) / std

    def undo(self, images: Tensor) -> Tensor:
        """Undoes the normalization of images (B, C, H, W): values in [0, 1]."""
        mean, std, _, _ = self._tensors(images.device)
        return images * std + mean
