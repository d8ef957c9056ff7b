"""The 8 × 8 handwritten digits that come with scikit-learn: real data without a download."""

from __future__ import annotations

import hashlib
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.data.base import ImageData

TEST_SIZE = 360


class Digits(ImageData):
    """1,797 grayscale digits of 8 × 8 pixels (test part of UCI's optical digits, Alpaydin 1998).

    Split once and for all: 360 test images, ``validation_size`` of the others for validation.

    Args:
        batch_size: images a batch and process.
        validation_size: training images held out for validation.
        shift: pixels of random shift, at most.
        cutout_size: side of the square blanked in training, in pixels.
        cutout_probability: probability that an image gets one.
        erase_probability: probability that a random rectangle of a training image becomes noise.
        drop_last: leaves out the last, incomplete training batch.
        image_size: pixels; other than 8, images are resized bilinearly.
        sampling_weights: how often training images of each class are drawn, relative to one
            another (1 for all of them draws each image once an epoch), or ``balanced``, which draws
            as many of each class.
        folds: for cross-validation, how many parts the training images are in.
        fold: the part, from 0, that validates in place of ``validation_size`` images.
    """

    name = "Digits"
    classes = tuple(str(digit) for digit in range(10))
    mean = (0.3053,)
    std = (0.3763,)

    def __init__(
        self,
        batch_size: int = 128,
        validation_size: int = 180,
        shift: int = 1,
        cutout_size: int = 0,
        cutout_probability: float = 0.5,
        erase_probability: float = 0.0,
        drop_last: bool = True,
        image_size: int = 8,
        sampling_weights: Literal["balanced"] | list[float] | None = None,
        folds: int | None = None,
        fold: int | None = None,
    ) -> None:
        # No flip: a mirrored digit is another one, or none.
        super().__init__(
            batch_size,
            validation_size,
            shift,
            False,
            cutout_size,
            cutout_probability,
            erase_probability,
            drop_last,
            sampling_weights=sampling_weights,
            folds=folds,
            fold=fold,
        )
        self.image_size = image_size
        self.input_shape = (1, image_size, image_size)

    def fetch(self) -> None:
        """Does nothing: the digits come with scikit-learn."""

    def _all(self) -> tuple[Tensor, Tensor]:
        from sklearn.datasets import load_digits

        data = load_digits()
        images = torch.from_numpy(data.images).float()[:, None] / 16  # sixteen gray levels
        if self.image_size != 8:
            images = F.interpolate(images, size=self.image_size, mode="bilinear")
        return (images * 255).round().to(torch.uint8), torch.from_numpy(data.target).long()

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        images, labels = self._all()
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(1797))
        index = order[TEST_SIZE:] if train else order[:TEST_SIZE]
        return images[index], labels[index]

    def checksums(self) -> dict[str, str]:
        images, labels = self._all()
        content = images.numpy().tobytes() + labels.numpy().tobytes()
        return {"sklearn.datasets.load_digits": hashlib.sha256(content).hexdigest()}
