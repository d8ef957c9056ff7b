"""What every data module of labelled images tells the rooms above it, in memory or on disk."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from zoo.data.module import DataModule

Split = Literal["train", "validation", "test"]


class LabelledImages(DataModule):
    """Images with a class each. A training batch is ``(images, labels)``, normalized and augmented.

    A subclass names itself, its classes and its statistics, and implements ``plain`` beside what
    every data module does.
    """

    classes: Sequence[str]
    mean: Sequence[float]
    std: Sequence[float]
    input_shape: Sequence[int]  # (C, H, W)
    batch_size: int

    def __init__(self, fallback: str | None = None) -> None:
        super().__init__(fallback)
        self._scales: dict[torch.device, tuple[Tensor, Tensor]] = {}

    @abstractmethod
    def plain(self, split: Split, batch: int = 500) -> Iterator[tuple[Tensor, Tensor]]:
        """A split in order, not augmented: images uint8 (B, C, H, W), labels (B,)."""

    def facts(self) -> dict[str, Any]:
        return {
            "classes": list(self.classes),
            "mean": list(self.mean),
            "std": list(self.std),
            "input_shape": list(self.input_shape),
        }

    def example_input(self, batch: int = 2) -> Tensor:
        """Noise (B, C, H, W) of the images' shape and scale; needs no data."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(batch, *self.used.input_shape, generator=generator)

    def normalize(self, images: Tensor) -> Tensor:
        """uint8 (B, C, H, W) → float32 with zero mean and unit variance a channel."""
        scale, offset = self._scale(images.device)
        return images.float().mul_(scale).sub_(offset)

    def _scale(self, device: torch.device) -> tuple[Tensor, Tensor]:
        # Made once a device: as slow as the normalizing itself.
        if device not in self._scales:
            mean = torch.tensor(self.used.mean, device=device)[:, None, None]
            std = torch.tensor(self.used.std, device=device)[:, None, None]
            self._scales[device] = 1 / (255 * std), mean / std
        return self._scales[device]
