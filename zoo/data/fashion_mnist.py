"""FashionMNIST (Xiao, Rasul and Vollgraf 2017): 70,000 grayscale 28 × 28 images of clothes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from zoo.data.base import ImageData
from zoo.data.digits import Digits
from zoo.data.download import check_file, data_folder, download
from zoo.data.module import DataMissing
from zoo.errors import UserError

# The IDX files, unpacked, of the data as replaced in August 2017; older ones overlapped.
SHA256 = {
    "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


class FashionMNIST(ImageData):
    """FashionMNIST: 55,000 training, 5,000 validation and 10,000 test images.

    Looks in ``ZOO_DATA``, else in a per-user cache, for ``FashionMNIST/raw`` as torchvision lays
    it out; downloads through torchvision where it is missing, and checks every file's sha256.

    Args:
        batch_size: images a batch and process.
        validation_size: training images held out for validation, by a fixed seed.
        shift: pixels of random shift, at most.
        flip: mirrors half of the training images.
        cutout_size: side of the square blanked in training, in pixels.
        cutout_probability: probability that an image gets one.
        erase_probability: probability that a random rectangle of a training image becomes noise.
        drop_last: leaves out the last, incomplete training batch.
        sampling_weights: how often training images of each class are drawn, relative to one
            another (1 for all of them draws each image once an epoch), or ``balanced``, which draws
            as many of each class.
        folds: for cross-validation, how many parts the training images are in.
        fold: the part, from 0, that validates in place of ``validation_size`` images.
        fallback: ``digits`` trains on scikit-learn's digits, with a warning, if FashionMNIST is
            missing and cannot be downloaded; ``null`` makes that an error.

    Raises:
        UserError: a file is truncated or altered; or the data are not available, without fallback.
    """

    name = "FashionMNIST"
    classes = (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    )
    mean = (0.2860,)
    std = (0.3530,)
    input_shape = (1, 28, 28)

    def __init__(
        self,
        batch_size: int = 256,
        validation_size: int = 5000,
        shift: int = 2,
        flip: bool = True,
        cutout_size: int = 0,
        cutout_probability: float = 0.5,
        erase_probability: float = 0.0,
        drop_last: bool = True,
        fallback: Literal["digits"] | None = None,
        sampling_weights: Literal["balanced"] | list[float] | None = None,
        folds: int | None = None,
        fold: int | None = None,
    ) -> None:
        super().__init__(
            batch_size,
            validation_size,
            shift,
            flip,
            cutout_size,
            cutout_probability,
            erase_probability,
            drop_last,
            fallback,
            sampling_weights,
            folds,
            fold,
        )
        self._checked = False

    @property
    def folder(self) -> Path:
        return data_folder() / "FashionMNIST" / "raw"

    def fetch(self) -> None:
        if not all((self.folder / name).exists() for name in SHA256):
            from torchvision import datasets

            holding = "FashionMNIST/raw/ with the four IDX files"
            try:
                download(datasets.FashionMNIST, self.name, self.folder, holding)
            except DataMissing as missing:
                raise DataMissing(
                    f"{missing}; a fit with --data.fallback digits trains on digits instead"
                ) from None
        if not self._checked:
            for name, expected in SHA256.items():
                check_file(self.folder / name, expected, "sha256")
            self._checked = True

    def make_stand_in(self) -> Digits:
        if self.fallback != "digits":
            raise UserError(f"data.fallback is {self.fallback!r}: choose digits or null")
        return Digits(
            batch_size=min(self.batch_size, 128),
            shift=self.shift,
            cutout_size=self.cutout_size,
            cutout_probability=self.cutout_probability,
            erase_probability=self.erase_probability,
            drop_last=self.drop_last,
            # The recipe's network was built for images of this size.
            image_size=self.input_shape[-1],
            folds=self.folds,
            fold=self.fold,
        )

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        prefix = "train" if train else "t10k"
        # IDX: a header of 16 bytes before images and 8 before labels, then plain bytes.
        images = np.fromfile(self.folder / f"{prefix}-images-idx3-ubyte", np.uint8)[16:]
        labels = np.fromfile(self.folder / f"{prefix}-labels-idx1-ubyte", np.uint8)[8:]
        return (
            torch.from_numpy(images.reshape(-1, *self.input_shape)),
            torch.from_numpy(labels.astype(np.int64)),
        )

    def checksums(self) -> dict[str, str]:
        return dict(SHA256)
