"""scikit-learn's digits with a class for each pixel: which digit's ink, or background."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from zoo.data.digits import Digits
from zoo.data.images import Split

INK = 128  # a pixel at least as bright, of 255, belongs to its digit


class DigitMasks(Digits):
    """The digits with masks: a batch is ``(images, masks)``, float (B, 1, H, W), int64 (B, H, W).

    A mask has class 0 where the image's pixel is background, and 1 + digit where it is ink. It is
    made after augmentation, of what the network sees. Classes cannot be drawn more or less often.

    Args:
        batch_size: images a batch and process.
        validation_size: training images held out for validation.
        shift: pixels of random shift, at most.
        image_size: pixels; images are resized bilinearly.
        folds: for cross-validation, how many parts the training images are in.
        fold: the part, from 0, that validates in place of ``validation_size`` images.
    """

    name = "DigitMasks"
    classes = ("background", *Digits.classes)

    def __init__(
        self,
        batch_size: int = 128,
        validation_size: int = 180,
        shift: int = 2,
        image_size: int = 16,
        folds: int | None = None,
        fold: int | None = None,
    ) -> None:
        super().__init__(
            batch_size,
            validation_size,
            shift=shift,
            image_size=image_size,
            folds=folds,
            fold=fold,
        )

    def plain(self, split: Split, batch: int = 500) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterates over a split, not augmented: images uint8 (B, 1, H, W), masks (B, H, W)."""
        for images, labels in super().plain(split, batch):
            yield images, masks_of(images, labels)

    def augmented(self, batch: Any, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        return self._with_masks(*super().augmented(batch, generator))

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        images, labels = super().on_after_batch_transfer(batch, dataloader_idx)
        if images.dtype == torch.uint8 or labels.ndim > 1:  # its step augments, or has done
            return images, labels
        return self._with_masks(images, labels)

    def _with_masks(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        pixels = (self._normalization.undo(images) * 255).round()
        return images, masks_of(pixels, labels)


def masks_of(images: Tensor, labels: Tensor) -> Tensor:
    """Images (B, 1, H, W) from 0 to 255 and labels (B,) → classes int64 (B, H, W)."""
    return torch.where(images[:, 0] >= INK, labels[:, None, None] + 1, 0)
