"""What every data module of labeled images offers the other packages, in memory or on disk."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from zoo.core.text import counted
from zoo.data.module import DataModule
from zoo.data.normalization import Normalization
from zoo.errors import UserError

Split = Literal["train", "validation", "test"]
TRAINING_SAMPLE = 5000  # clean training images that a fit measures itself on, at most


def check_folds(folds: int | None, fold: int | None) -> None:
    """Refuses a number of folds, or of a fold, that cannot be.

    Raises:
        UserError: one of the two without the other, fewer than two folds, or no such fold.
    """
    if folds is None and fold is None:
        return
    if folds is None or folds < 2:
        raise UserError(f"data.folds is {folds}: give at least 2, with data.fold from 0")
    if fold is None or not 0 <= fold < folds:
        raise UserError(f"data.fold is {fold}: give a number from 0 to {folds - 1}")


class LabeledImages(DataModule):
    """Images with a class each. A training batch is ``(images, labels)``, normalized and augmented.

    A subclass names itself, its classes and its statistics, and implements ``plain`` and
    ``training_sample``, as well as a data module's methods.
    """

    classes: Sequence[str]
    mean: Sequence[float]
    std: Sequence[float]
    input_shape: Sequence[int]  # (C, H, W)
    batch_size: int

    @abstractmethod
    def plain(self, split: Split, batch: int = 500) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterates over a split, not augmented: images uint8 (B, C, H, W), labels (B,)."""

    @abstractmethod
    def training_sample(self) -> Iterable[Any]:
        """Batches of the same training images each time, in order and not augmented."""

    @abstractmethod
    def class_counts(self) -> Tensor:
        """Counts the training images of each class, int64 (K,)."""

    def network_arguments(self) -> dict[str, int]:
        self.prepare_data()
        channels, height, _ = self.used.input_shape
        return {
            "num_classes": len(self.used.classes),
            "in_channels": channels,
            "image_size": height,
        }

    def facts(self) -> dict[str, Any]:
        return {
            "classes": list(self.classes),
            "mean": list(self.mean),
            "std": list(self.std),
            "input_shape": list(self.input_shape),
        }

    def example_input(self, batch: int = 2) -> Tensor:
        """Draws noise (B, C, H, W) of the images' shape and scale; needs no data."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(batch, *self.used.input_shape, generator=generator)

    def normalize(self, images: Tensor) -> Tensor:
        """Normalizes uint8 (B, C, H, W) to float32 with zero mean and unit variance a channel."""
        return self._normalization(images)

    @cached_property
    def _normalization(self) -> Normalization:
        return Normalization(self.used.mean, self.used.std)


def draws(given: Literal["balanced"] | list[float] | None, counts: Tensor) -> Tensor | None:
    """Computes how often a training image of each class is drawn, relative to the others.

    Args:
        given: a number a class, or ``balanced``, by which each class is drawn as often.
        counts: images of each class, (K,).

    Returns:
        (K,), or None where nothing is given.

    Raises:
        UserError: there is not a number for each class, one is negative, or all are 0.
    """
    if given is None:
        return None
    if given == "balanced":
        return 1 / counts.clamp(min=1)
    if isinstance(given, str):
        raise UserError(f"data.sampling_weights is {given!r}: give balanced, or a number a class")
    if len(given) != len(counts):
        raise UserError(
            f"data.sampling_weights has {counted(len(given), 'number')} for "
            f"{counted(len(counts), 'class', 'classes')}: give one each"
        )
    if not all(0 <= weight < float("inf") for weight in given) or not any(given):
        raise UserError(
            f"data.sampling_weights is {given}: numbers from 0 up, and not 0 for every class"
        )
    return torch.tensor(given)


LabelledImages = LabeledImages  # the name in 0.1
