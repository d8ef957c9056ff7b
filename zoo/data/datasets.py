"""Any labeled images that Python has at hand, as a data module, without subclassing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset
from torchvision.transforms import v2

from zoo.core.seeds import step_seed
from zoo.core.text import shown
from zoo.data.augment import shift_and_flip
from zoo.data.batches import Batches
from zoo.data.images import TRAINING_SAMPLE, LabeledImages, Split, check_folds, draws
from zoo.data.loaders import Resampled, Share
from zoo.errors import UserError

# (images, labels) as tensors (N, C, H, W) and (N,), or samples of (image, label).
Source = Dataset[Any] | tuple[Tensor, Tensor]


class Images(LabeledImages):
    """Labeled images from any ``Dataset``, or from tensors in memory.

    Images are uint8 or floating-point tensors (C, H, W) of one size, or PIL images; labels are
    whole numbers from 0 up. A ``Dataset`` brings its own augmentation; here images are shifted,
    flipped and normalized in batches on the device.

    Example:
        >>> data = zoo.data.Images(train=(images, labels), test=torchvision.datasets.MNIST("."))

    Args:
        train: what is trained on: a ``Dataset`` of (image, label), or a pair of tensors
            (N, C, H, W) and (N,).
        val: what is validated on; by default a fraction of ``train``, by a fixed seed.
        test: what is tested on; None for nothing.
        classes: their names; by default the data set's own ``classes``, else their numbers.
        mean, std: of each channel, of bytes divided by 255; by default measured on a thousand
            training images.
        batch_size: images a batch and process.
        validation: the fraction of ``train`` that is held out, without ``val``.
        folds: for cross-validation, how many parts ``train`` is in.
        fold: the part, from 0, that validates in place of that fraction.
        shift: pixels of random shift, at most.
        flip: mirrors half of the training images.
        sampling_weights: how often training images of each class are drawn, relative to one
            another, or ``balanced``, which draws as many of each class.
        workers: processes that read a ``Dataset``.
        name: what a checkpoint calls the data.

    Raises:
        UserError: what is given is not a data set, or its images or labels are of another form.
    """

    def __init__(
        self,
        train: Source,
        val: Source | None = None,
        test: Source | None = None,
        *,
        classes: Sequence[str] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        batch_size: int = 64,
        validation: float = 0.1,
        folds: int | None = None,
        fold: int | None = None,
        shift: int = 0,
        flip: bool = False,
        sampling_weights: Literal["balanced"] | list[float] | None = None,
        workers: int = 0,
        name: str | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}: it must be at least 1")
        if not 0 < validation < 1:
            raise UserError(f"validation is {validation}: a fraction, above 0 and below 1")
        check_folds(folds, fold)
        if folds is not None and val is not None:
            raise UserError("folds divide the training images: give folds or val")
        whole = _as_dataset(train, "train")
        self._sets: dict[str, Any] = {"train": whole}
        if val is None:
            # Fixed, whatever the seed of a run: runs are compared on the same images.
            order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(0))
            if folds is not None and fold is not None:
                held_out = order.tensor_split(folds)[fold]
            else:
                held_out = order[: max(1, round(len(whole) * validation))]
            trained = torch.ones(len(whole), dtype=torch.bool)
            trained[held_out] = False
            self._sets["validation"] = Subset(whole, held_out.sort().values.tolist())
            self._sets["train"] = Subset(whole, trained.nonzero().flatten().tolist())
        else:
            self._sets["validation"] = _as_dataset(val, "val")
        if test is not None:
            self._sets["test"] = _as_dataset(test, "test")
        for split, images in self._sets.items():
            if not len(images):
                raise UserError(f"there is no {split} image")
        self.batch_size, self.shift, self.flip = batch_size, shift, flip
        self.sampling_weights, self.workers = sampling_weights, workers
        self.name = name or type(train).__name__.replace("tuple", "Images")
        self.has_test = test is not None
        self.input_shape = list(_pixels(whole[0][0]).shape)
        self._given = classes, mean, std

    def fetch(self) -> None:
        """Does nothing: the images are there."""

    @cached_property
    def classes(self) -> list[str]:  # type: ignore[override]
        """The names of the classes."""
        named = self._given[0] or _attribute(self._sets["train"], "classes")
        if named is not None:
            return [str(name) for name in named]
        highest = max(int(labels.max()) for labels in map(_labels, self._sets.values()))
        return [str(label) for label in range(highest + 1)]

    @cached_property
    def _measured(self) -> tuple[list[float], list[float]]:
        """Mean and deviation of each channel, of at most a thousand training images."""
        images = self._sets["train"]
        some = range(0, len(images), max(1, len(images) // 1000))
        pixels = torch.stack([_scaled(_pixels(images[index][0])) for index in some])
        mean, std = pixels.mean((0, 2, 3)), pixels.std((0, 2, 3)).clamp(min=1e-6)
        return mean.tolist(), std.tolist()

    @property
    def mean(self) -> list[float]:  # type: ignore[override]
        return list(self._given[1] or self._measured[0])

    @property
    def std(self) -> list[float]:  # type: ignore[override]
        return list(self._given[2] or self._measured[1])

    def checksums(self) -> dict[str, str]:
        """Of images in memory; what a ``Dataset`` reads, it alone knows."""
        found = {}
        for split, images in self._sets.items():
            if (tensors := _tensors(images)) is not None:
                content = b"".join(one.contiguous().numpy().tobytes() for one in tensors)
                found[split] = hashlib.sha256(content).hexdigest()
        return found

    def sizes(self) -> dict[str, int]:
        names = {"train": "train", "val": "validation", "test": "test"}
        return {name: len(self._sets.get(split, ())) for name, split in names.items()}

    def class_counts(self) -> Tensor:
        return _labels(self._sets["train"]).bincount(minlength=len(self.classes))

    def plain(self, split: Split, batch: int = 500) -> Iterator[tuple[Tensor, Tensor]]:
        yield from self._loader(self._images(split), batch)

    def training_sample(self) -> Any:
        images = self._images("train")
        every = -(-len(images) // TRAINING_SAMPLE)
        return self._loader(Subset(images, range(0, len(images), every)), self.batch_size)

    def _images(self, split: str) -> Any:
        if split not in self._sets:
            raise UserError(f"{self.name} has no {split} images: give {split}=")
        return self._sets[split]

    # -- Lightning's hooks -----------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Holds the labels that can be seen without reading images against the classes."""
        for split, images in self._sets.items():
            if (labels := _known_labels(images)) is not None:
                low, high = int(labels.min()), int(labels.max())
                if low < 0 or high >= len(self.classes):
                    raise UserError(
                        f"the {split} labels go from {low} to {high}, and there are "
                        f"{len(self.classes)} classes, numbered from 0"
                    )

    def _loader(self, images: Any, batch_size: int, train: bool = False) -> Any:
        trainer = self.trainer
        rank, world = (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)
        weights = draws(self.sampling_weights, self.class_counts()) if train else None
        if weights is not None:
            weights = weights[_labels(images)]
        drop_last = train and len(images) // world >= batch_size
        if (tensors := _tensors(images)) is not None:
            seed = torch.initial_seed()
            if trainer is not None:
                seed = trainer.strategy.broadcast(seed)
            return Batches(
                *tensors,
                batch_size=batch_size,
                shuffle=train,
                drop_last=drop_last,
                seed=seed % 2**31,
                rank=rank,
                world=world,
                weights=weights,
            )
        order: dict[str, Any] = {"shuffle": True}
        if not train:
            order = {"sampler": Share(len(images), rank, world)}
        elif weights is not None:
            order = {"sampler": Resampled(weights)}
        return DataLoader(
            images,
            batch_size,
            num_workers=self.workers,
            collate_fn=_collate,
            pin_memory=torch.cuda.is_available(),
            drop_last=drop_last,
            **order,
        )

    def train_dataloader(self) -> Any:
        return self._loader(self._images("train"), self.batch_size, train=True)

    def val_dataloader(self) -> Any:
        return self._loader(self._images("validation"), self.batch_size)

    def test_dataloader(self) -> Any:
        return self._loader(self._images("test"), self.batch_size)

    def predict_dataloader(self) -> Any:
        return self.test_dataloader()

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        images, labels = batch
        if self.trainer is not None and self.trainer.training:
            generator = torch.Generator(images.device).manual_seed(step_seed(self.trainer))
            images = shift_and_flip(images, self.shift, self.flip, generator)
        return self.normalize(images), labels


def _as_dataset(given: Any, name: str) -> Any:
    """A data set of what was given.

    Raises:
        UserError: it is neither a data set with a length nor a pair of tensors that belong
            together.
    """
    if isinstance(given, tuple | list) and len(given) == 2 and isinstance(given[0], Tensor):
        images, labels = given[0], torch.as_tensor(given[1])
        if images.ndim != 4 or labels.shape != images.shape[:1] or labels.is_floating_point():
            raise UserError(
                f"{name} has images {tuple(images.shape)} and labels {tuple(labels.shape)} "
                f"({labels.dtype}): give (N, C, H, W) and whole numbers (N,)"
            )
        return TensorDataset(images, labels.long())
    if hasattr(given, "__getitem__") and hasattr(given, "__len__") and not isinstance(given, str):
        return given
    raise UserError(
        f"{name} is {shown(given)}: give a Dataset of (image, label) that has a length, or a pair "
        "of tensors (images, labels)"
    )


def _pixels(image: Any) -> Tensor:
    """One image as a tensor (C, H, W).

    Raises:
        UserError: it is none.
    """
    if isinstance(image, Image.Image):
        image = v2.functional.pil_to_tensor(image)
    if not isinstance(image, Tensor) or image.ndim != 3:
        raise UserError(
            f"an image is {shown(getattr(image, 'shape', image))}: give tensors (C, H, W), or PIL "
            "images"
        )
    return image


def _scaled(pixels: Tensor) -> Tensor:
    return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()


def _collate(samples: list[tuple[Any, Any]]) -> tuple[Tensor, Tensor]:
    images = [_pixels(image) for image, _ in samples]
    if len(sizes := {tuple(image.shape) for image in images}) > 1:
        one, other = sorted(sizes)[:2]
        raise UserError(
            f"images are {one} and {other}: give the data set a transform that makes them one size "
            "(torchvision.transforms.v2.Resize and CenterCrop)"
        )
    return torch.stack(images), torch.tensor([int(label) for _, label in samples])


def _tensors(images: Any) -> tuple[Tensor, Tensor] | None:
    """Images and labels, of those that are in memory."""
    if isinstance(images, TensorDataset):
        return images.tensors[0], images.tensors[1]
    if isinstance(images, Subset) and isinstance(images.dataset, TensorDataset):
        index = torch.tensor(images.indices)
        return images.dataset.tensors[0][index], images.dataset.tensors[1][index]
    return None


def _attribute(images: Any, name: str) -> Any:
    """What a data set, or the one that it is a part of, calls by this name."""
    while isinstance(images, Subset):
        images = images.dataset
    return getattr(images, name, None)


def _known_labels(images: Any) -> Tensor | None:
    """The labels, where they can be seen without reading the images; torchvision calls them so."""
    if isinstance(images, TensorDataset):
        return images.tensors[1]
    if isinstance(images, Subset):
        within = _known_labels(images.dataset)
        return None if within is None else within[torch.tensor(images.indices)]
    targets = getattr(images, "targets", None)
    if targets is None or len(targets) != len(images):
        return None
    return torch.as_tensor(targets)


def _labels(images: Any) -> Tensor:
    known = _known_labels(images)
    if known is None:
        known = torch.tensor([int(images[index][1]) for index in range(len(images))])
    return known
