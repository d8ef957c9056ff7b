"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009): 60,000 color 32 × 32 photographs."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from zoo.data.base import ImageData
from zoo.data.download import check_file, data_folder, download


class CIFAR10(ImageData):
    """CIFAR-10: 45,000 training, 5,000 validation and 10,000 test images.

    Looks in ``ZOO_DATA``, else in a per-user cache, for ``cifar-10-batches-py`` as torchvision lays
    it out; downloads through torchvision where it is missing, and checks every file's md5, which
    is all that its authors publish.

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

    Raises:
        UserError: a file is truncated or altered, or the data are not available.
    """

    name = "CIFAR10"
    classes = (
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    )
    mean = (0.4914, 0.4822, 0.4465)
    std = (0.2470, 0.2435, 0.2616)
    input_shape = (3, 32, 32)
    labels_key: ClassVar[str] = "labels"

    def __init__(
        self,
        batch_size: int = 256,
        validation_size: int = 5000,
        shift: int = 4,
        flip: bool = True,
        cutout_size: int = 0,
        cutout_probability: float = 0.5,
        erase_probability: float = 0.0,
        drop_last: bool = True,
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
            sampling_weights=sampling_weights,
            folds=folds,
            fold=fold,
        )
        self._checked = False

    @property
    def peer(self) -> type:
        """torchvision's data set, which knows files and checksums."""
        from torchvision import datasets

        peer: type = getattr(datasets, self.name)
        return peer

    @property
    def folder(self) -> Path:
        return data_folder() / str(self.peer.base_folder)  # type: ignore[attr-defined]

    def _files(self, train: bool) -> dict[str, str]:
        """File name → md5."""
        listed = self.peer.train_list if train else self.peer.test_list  # type: ignore[attr-defined]
        return dict(listed)

    @property
    def _meta(self) -> dict[str, str]:
        """The file of the classes' names → md5."""
        meta = self.peer.meta  # type: ignore[attr-defined]
        return {meta["filename"]: meta["md5"]}

    def fetch(self) -> None:
        expected = {**self._files(train=True), **self._files(train=False), **self._meta}
        if not all((self.folder / name).exists() for name in expected):
            download(self.peer, self.name, self.folder, f"{self.folder.name}/")
        if not self._checked:
            for name, digest in expected.items():
                check_file(self.folder / name, digest, "md5")
            self._checked = True

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        images, labels = [], []
        for name in self._files(train):
            content = _read_pickle(self.folder / name)
            images.append(np.asarray(content["data"], np.uint8).reshape(-1, 3, 32, 32))
            labels.extend(content[self.labels_key])
        return torch.from_numpy(np.concatenate(images)), torch.tensor(labels, dtype=torch.long)

    def checksums(self) -> dict[str, str]:
        names = [*self._files(train=True), *self._files(train=False)]
        return {n: hashlib.sha256((self.folder / n).read_bytes()).hexdigest() for n in names}


class CIFAR100(CIFAR10):
    """CIFAR-100: 45,000 training, 5,000 validation and 10,000 test images of 100 classes.

    All else as ``CIFAR10``.
    """

    name = "CIFAR100"
    mean = (0.5071, 0.4865, 0.4409)
    std = (0.2673, 0.2564, 0.2762)
    labels_key = "fine_labels"

    @property
    def classes(self) -> tuple[str, ...]:  # type: ignore[override]
        if not self._checked:  # nothing is unpickled before its checksum is verified
            return tuple(str(index) for index in range(100))
        return tuple(_read_pickle(self.folder / next(iter(self._meta)))["fine_label_names"])


def _read_pickle(path: Path) -> dict[str, Any]:
    """The authors' own format; the file's checksum has been verified before."""
    import pickle

    with path.open("rb") as file:
        content: dict[str, Any] = pickle.load(file, encoding="latin1")
    return content
