"""What every set of small images shares: split, batches, augmentation on the device, fallback."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from zoo.core.seeds import step_seed
from zoo.core.text import counted
from zoo.data.augment import cutout, erase, shift_and_flip
from zoo.data.batches import Batches
from zoo.data.images import TRAINING_SAMPLE, LabeledImages, Split, check_folds, draws
from zoo.errors import UserError


class ImageData(LabeledImages):
    """Labeled images in memory as uint8, normalized and augmented on the device.

    A subclass names itself, its classes and its statistics, and implements ``fetch`` and
    ``read``. A batch is ``(images, labels)``: uint8 (B, C, H, W) from the loader, float
    (B, C, H, W) with zero mean and unit variance after ``on_after_batch_transfer``, and int64
    (B,). Training images are shifted, flipped, cut out and erased; others never are. With
    ``sampling_weights`` an epoch holds each class as often as its number says, and is as long.
    With ``folds`` the training images are in this number of equal parts, and ``fold``, from 0, is
    the part held out for validation in place of ``validation_size`` images.
    """

    def __init__(
        self,
        batch_size: int,
        validation_size: int,
        shift: int,
        flip: bool,
        cutout_size: int,
        cutout_probability: float,
        erase_probability: float,
        drop_last: bool,
        fallback: str | None = None,
        sampling_weights: Literal["balanced"] | list[float] | None = None,
        folds: int | None = None,
        fold: int | None = None,
    ) -> None:
        super().__init__(fallback)
        check_folds(folds, fold)
        if batch_size < 1:
            raise UserError(f"data.batch_size is {batch_size}: it must be at least 1")
        if validation_size < 1:
            raise UserError(f"data.validation_size is {validation_size}: it must be at least 1")
        for name, value in (("cutout", cutout_probability), ("erase", erase_probability)):
            if not 0 <= value <= 1:
                raise UserError(f"data.{name}_probability is {value}: it must lie between 0 and 1")
        if min(shift, cutout_size) < 0:
            raise UserError("data.shift and data.cutout_size are pixels: they cannot be negative")
        if sampling_weights is not None:  # what cannot be is refused before anything is read
            draws(sampling_weights, torch.ones(len(self.classes)))
        self.batch_size, self.validation_size = batch_size, validation_size
        self.shift, self.flip = shift, flip
        self.cutout_size, self.cutout_probability = cutout_size, cutout_probability
        self.erase_probability = erase_probability
        self.drop_last, self.sampling_weights = drop_last, sampling_weights
        self.folds, self.fold = folds, fold
        self._train: tuple[Tensor, Tensor] | None = None
        self._validation: tuple[Tensor, Tensor] | None = None
        self._test: tuple[Tensor, Tensor] | None = None
        self._later: torch.Generator | None = None  # of a batch that its step augments

    # -- what a subclass says --------------------------------------------------------------------

    @abstractmethod
    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        """Reads images uint8 (N, C, H, W) and labels int64 (N,) of the training or the test set."""

    # -- what all share --------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Reads what the stage needs; the test set is read for ``test`` and ``predict`` only."""
        self.prepare_data()
        used = self.used
        if stage in ("fit", "validate") and self._train is None:
            images, labels = used.read(train=True)
            # Fixed, whatever the seed of a run: runs are compared on the same validation images.
            order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
            held_out, kept = used.split(order)
            self._train = images[kept], labels[kept]
            self._validation = images[held_out], labels[held_out]
        if stage in ("test", "predict") and self._test is None:
            self._test = used.read(train=False)

    def split(self, order: Tensor) -> tuple[Tensor, Tensor]:
        """Positions (N,) of all training images → those held out for validation, and the rest.

        Raises:
            UserError: nothing would be left to train on.
        """
        if self.folds is not None and self.fold is not None:
            if self.folds > len(order):
                raise UserError(
                    f"data.folds is {self.folds}, but the training set has only "
                    f"{counted(len(order), 'image')}"
                )
            parts = list(order.tensor_split(self.folds))
            held_out = parts.pop(self.fold)
            return held_out, torch.cat(parts)
        size = self.validation_size
        if size >= len(order):
            raise UserError(
                f"data.validation_size is {size}, but the training set has only "
                f"{counted(len(order), 'image')}"
            )
        return order[:size], order[size:]

    def _set(self, split: Split) -> tuple[Tensor, Tensor]:
        self.setup("test" if split == "test" else "fit")
        sets = {"train": self._train, "validation": self._validation, "test": self._test}
        chosen = sets[split]
        assert chosen is not None
        return chosen

    def plain(self, split: Split, batch: int = 500) -> Iterator[tuple[Tensor, Tensor]]:
        images, labels = self._set(split)
        yield from zip(torch.split(images, batch), torch.split(labels, batch), strict=True)

    def sizes(self) -> dict[str, int]:
        splits: dict[str, Split] = {"train": "train", "val": "validation", "test": "test"}
        return {name: len(self._set(split)[1]) for name, split in splits.items()}

    def _batches(self, data: tuple[Tensor, Tensor] | None, train: bool = False) -> Batches:
        if data is None:
            raise RuntimeError("call setup first")
        rank, world, seed = 0, 1, torch.initial_seed()
        if self.trainer is not None:
            rank, world = self.trainer.global_rank, self.trainer.world_size
            seed = self.trainer.strategy.broadcast(seed)
        return Batches(
            *data,
            # Nothing remembers activations in evaluation, so that batches may be larger.
            batch_size=self.used.batch_size if train else max(500, self.used.batch_size),
            shuffle=train,
            drop_last=train and self.used.drop_last,
            seed=seed % 2**31,
            rank=rank,
            world=world,
            weights=self._weights(data[1]) if train else None,
        )

    def _weights(self, labels: Tensor) -> Tensor | None:
        """Of each image: its class's."""
        weights = draws(self.used.sampling_weights, self._counts(labels))
        return None if weights is None else weights[labels]

    def _counts(self, labels: Tensor) -> Tensor:
        return labels.bincount(minlength=len(self.used.classes))

    def class_counts(self) -> Tensor:
        return self._counts(self._set("train")[1])

    def train_dataloader(self) -> Batches:
        batches = self._batches(self._train, train=True)
        if not len(batches):
            raise UserError(
                f"data.batch_size is {batches.batch_size} a process, but the training set has "
                f"only {counted(len(batches.inputs), 'image')}"
            )
        return batches

    def val_dataloader(self) -> Batches:
        return self._batches(self._validation)

    def training_sample(self) -> Batches:
        images, labels = self._set("train")  # in random order since the split
        return self._batches((images[:TRAINING_SAMPLE], labels[:TRAINING_SAMPLE]))

    def test_dataloader(self) -> Batches:
        return self._batches(self._test)

    def predict_dataloader(self) -> Batches:
        return self._batches(self._test)

    def augment(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Augments uint8 training images (B, C, H, W)."""
        used = self.used
        images = shift_and_flip(images, used.shift, used.flip, generator)
        images = cutout(images, used.cutout_size, used.cutout_probability, generator)
        return erase(images, used.erase_probability, generator)

    def augmented(self, batch: Any, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Augments and normalizes a training batch, on its device."""
        images, labels = batch
        return self.normalize(self.augment(images, generator)), labels

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        # Lightning's loops alone call this; whoever moves a batch besides has it augmented.
        trainer = self.trainer
        task = trainer.lightning_module if trainer is not None and trainer.training else None
        self._later = getattr(task, "augmentation_generator", None)
        return batch

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        images, labels = batch
        later, self._later = self._later, None
        if images.dtype != torch.uint8:  # already normalized by somebody's own loader
            return batch
        if self.trainer is None or not self.trainer.training:
            return self.normalize(images), labels
        generator = torch.Generator(images.device) if later is None else later
        generator.manual_seed(step_seed(self.trainer))
        return self.augmented(batch, generator) if later is None else batch
