"""Anyone's folder of images, of any size, labeled by sub-folders or by a table."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from zoo.core.files import is_folder
from zoo.core.seeds import step_seed
from zoo.core.text import counted
from zoo.data.checking import Checked, check_files
from zoo.data.decode import Color, decode, rgb
from zoo.data.images import TRAINING_SAMPLE, LabeledImages, Split, check_folds, draws
from zoo.data.listing import Item, LeftOut, Listing, describe, list_folders, list_labels
from zoo.data.loaders import Resampled, Share
from zoo.data.transform import evaluation_crop
from zoo.errors import UserError

PARTS: dict[Split, str] = {"train": "train", "validation": "val", "test": "test"}
# Of ImageNet, which most networks for photographs are trained on; of grayscale, their averages.
MEAN = {3: [0.485, 0.456, 0.406], 1: [0.449]}
STD = {3: [0.229, 0.224, 0.225], 1: [0.226]}
CROP_PCT = 0.875  # what is seen of the shorter side in evaluation, as is usual
UNREADABLE = ("empty", "unreadable")  # reasons why an image is left out, where it was to be read


Sample = tuple[Tensor | None, int, str]


class _Images(Dataset[Sample]):
    """Decoded, cropped and resized images; for one that cannot be read None, and why."""

    def __init__(
        self, items: list[Item], crop: v2.Transform, channels: int, background: Color
    ) -> None:
        self.items, self.crop = items, crop
        self.channels, self.background = channels, background

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Sample:
        path, label = self.items[index]
        try:
            return self.crop(decode(path, self.channels, self.background)), label, ""
        except UserError as error:
            return None, label, str(error)


def _collate(samples: list[Sample]) -> tuple[Tensor, Tensor, list[str]]:
    """Images uint8 (B, C, H, W), labels (B,), and what is wrong with the unreadable ones."""
    images = [image for image, _, _ in samples if image is not None]
    labels = [label for image, label, _ in samples if image is not None]
    problems = [problem for image, _, problem in samples if image is None]
    stacked = torch.stack(images) if images else torch.empty(0, 3, 1, 1, dtype=torch.uint8)
    return stacked, torch.tensor(labels, dtype=torch.long), problems


@dataclass(frozen=True)
class _Contents:
    """What a folder holds, every file of it checked."""

    classes: list[str]
    parts: dict[str, list[Item]]  # train, val and test
    left_out: list[LeftOut]
    checked: dict[Path, Checked]

    @property
    def unreadable(self) -> list[LeftOut]:
        return [one for one in self.left_out if one.reason in UNREADABLE]

    def gray(self) -> int:
        """How many of the images are gray."""
        return sum(self.checked[path].gray for items in self.parts.values() for path, _ in items)

    def images(self) -> int:
        return sum(map(len, self.parts.values()))


class ImageFolder(LabeledImages):
    """A folder of images with a sub-folder for each class, or with a table of labels.

    Without a table either ``FOLDER/train/CLASS/*`` and, where there are any, ``FOLDER/val/CLASS/*``
    and ``FOLDER/test/CLASS/*``; or ``FOLDER/CLASS/*``, from which validation and test images are
    taken by fraction and a fixed seed, as validation images are where there is no ``val``. Classes
    are sorted by name; their order goes into the checkpoint.

    Every file is read once before the first step, and what was found is kept by size and date:
    ``report`` tabulates it. Of files with the same bytes in two splits, only the one in the test
    images, else in the validation images, stays. JPEG, PNG, BMP, GIF (the first frame), TIFF and
    WebP are read (``zoo.data.decode``). Images are decoded, cropped and resized by workers, and
    augmented in batches on the device. A run that was killed within an epoch begins that epoch's
    order anew.

    Args:
        folder: folder of the images.
        labels: a CSV or TSV file with the columns path (relative to the folder), label and, where
            it parts the images, split; None for a sub-folder a class.
        image_size: pixels a side that the network sees.
        channels: 1 or 3, to which every image is converted; by default 3, or 1 where every image
            is grayscale.
        background: background of transparent images: a color's name, or #rrggbb.
        batch_size: images a batch and process.
        validation: the fraction of each class held out for validation, where nothing says which.
        test: the fraction held out for testing, where nothing parts the images; may be 0.
        sampling_weights: how often training images of each class are drawn, relative to one
            another (1 for all of them draws each image once an epoch), or ``balanced``, which draws
            as many of each class.
        randaugment: magnitude of RandAugment, 0 to 30 (Cubuk et al. 2020), image by image; 0 for
            none.
        mixup: α of mixup (Zhang et al. 2018); 0 for none.
        cutmix: α of CutMix (Yun et al. 2019); 0 for none. With both, each batch gets one of them.
        flip: mirrors half of the training images.
        scale: the least part of an image's area that a training crop shows.
        corrupt: ``error`` stops at an image that cannot be read, before the first step; ``skip``
            leaves it out; either way it is named.
        workers: processes that decode; by default the machine's cores but one, shared by the
            processes that train.
        mean, std: of each channel, ImageNet's by default.
        folds: for cross-validation, how many parts each class's training images are in; not where
            validation images are named.
        fold: the part, from 0, that validates in place of the fraction ``validation``.

    Raises:
        UserError: no such folder, no classes, an empty class, or an image that cannot be read.
    """

    def __init__(
        self,
        folder: str | None = None,
        labels: str | None = None,
        image_size: int = 224,
        channels: Literal[1, 3] | None = None,
        background: Color = "white",
        batch_size: int = 64,
        validation: float = 0.1,
        test: float = 0.1,
        sampling_weights: Literal["balanced"] | list[float] | None = None,
        randaugment: int = 9,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        flip: bool = True,
        scale: float = 0.08,
        corrupt: Literal["error", "skip"] = "error",
        workers: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        folds: int | None = None,
        fold: int | None = None,
    ) -> None:
        super().__init__()
        check_folds(folds, fold)
        self.folds, self.fold = folds, fold
        if batch_size < 1 or image_size < 1:
            raise UserError("data.batch_size and data.image_size must be at least 1")
        if not 0 < validation < 1:
            raise UserError(f"data.validation is {validation}: a fraction, above 0 and below 1")
        if not 0 <= test < 1:
            raise UserError(f"data.test is {test}: a fraction, at least 0 and below 1")
        if not 0 <= randaugment <= 30:
            raise UserError(f"data.randaugment is {randaugment}: a magnitude from 0 to 30")
        if not 0 < scale <= 1:
            raise UserError(f"data.scale is {scale}: a part of the area, above 0 and at most 1")
        if min(mixup, cutmix) < 0:
            raise UserError("data.mixup and data.cutmix cannot be negative")
        if corrupt not in ("error", "skip"):
            raise UserError(f"data.corrupt is {corrupt!r}: choose error or skip")
        if workers is not None and workers < 0:
            raise UserError(f"data.workers is {workers}: it cannot be negative")
        if channels not in (1, 3, None):
            raise UserError(f"data.channels is {channels}: give 1 for grayscale or 3 for color")
        rgb(background)
        self.folder = None if folder is None else Path(os.path.normpath(folder))
        self.labels = None if labels is None else Path(labels)
        self.image_size, self.batch_size, self.background = image_size, batch_size, background
        self.validation, self.test, self.sampling_weights = validation, test, sampling_weights
        self.mixup, self.cutmix, self.corrupt = mixup, cutmix, corrupt
        self.workers, self.flip = workers, flip
        self._channels = _check_statistics(mean, std, channels)
        self._mean, self._std = mean, std
        self.randaugment = v2.RandAugment(magnitude=randaugment) if randaugment else None
        self._training_crop = v2.RandomResizedCrop(image_size, (scale, 1.0), antialias=True)
        self._crop = evaluation_crop(image_size, CROP_PCT)
        self._contents: _Contents | None = None
        self._warned: set[str] = set()
        self._reported = False

    # -- what is in the folder -------------------------------------------------------------------

    def contents(self) -> _Contents:
        """Lists the images, and reads those that have changed since they were last read; once.

        Raises:
            UserError: there is no such folder, or a class or a split of it without an image.
        """
        if self._contents is None:
            if self.folder is None:
                raise UserError("data.folder is missing: give --data.folder PATH, your images")
            if not is_folder(self.folder):
                raise UserError(f"data.folder: no such folder: {self.folder}")
            if self.labels is not None:
                listing = list_labels(self.folder, self.labels)
            else:
                listing = list_folders(self.folder)
            parts = self._split(listing)
            files = [path for items in parts.values() for path, _ in items]
            checked = dict(zip(files, check_files(self.folder, files), strict=True))
            self._contents = self._sift(listing, parts, checked)
        return self._contents

    def report(self) -> str:
        """Tabulates the images by class and split, and what is left out and why."""
        contents = self.contents()
        gray, images = contents.gray(), contents.images()
        notes = []
        if self.channels == 3 and gray:
            notes = [f"grayscale: {counted(gray, 'image')}, read as three equal channels"]
        elif self.channels == 1 and gray < images:
            notes = [f"color: {counted(images - gray, 'image')}, read as grayscale"]
        self._reported = True
        assert self.folder is not None
        return describe(self.folder, contents.classes, contents.parts, contents.left_out, notes)

    def _split(self, listing: Listing) -> dict[str, list[Item]]:
        parts = listing.parts
        if "all" in parts:
            return self._by_fraction(listing.classes, parts["all"], self.test)
        if parts.get("val") and self.folds is not None:
            raise UserError(
                f"data.folds is {self.folds}, and {self.folder} has validation images of its own: "
                "move them to the training images, or leave out data.folds"
            )
        if not parts.get("val"):
            parts = {**parts, **self._by_fraction(listing.classes, parts["train"], test=0)}
            parts["test"] = listing.parts.get("test", [])
        return {part: parts.get(part, []) for part in PARTS.values()}

    def _by_fraction(
        self, classes: list[str], items: list[Item], test: float
    ) -> dict[str, list[Item]]:
        """Every class is split alike, by a fixed seed, whatever the seed of a run.

        Each class for itself: an image more in one of them leaves the others' splits as they are.
        """
        parts: dict[str, list[Item]] = {"train": [], "val": [], "test": []}
        by_class: list[list[Item]] = [[] for _ in classes]
        for item in items:
            by_class[item[1]].append(item)
        for name, mine in zip(classes, by_class, strict=True):
            generator = torch.Generator().manual_seed(0)
            order = torch.randperm(len(mine), generator=generator).tolist()
            held = max(1, round(len(mine) * self.validation))
            tested = max(1, round(len(mine) * test)) if test else 0
            if self.folds is not None and self.fold is not None:
                # The same images are tested in every fold.
                aside, rest = order[:tested], order[tested:]
                if len(rest) < self.folds:
                    raise UserError(
                        f"{self.folder}: class {name!r} has {counted(len(rest), 'image')}, which "
                        f"cannot be in {self.folds} folds"
                    )
                validated = rest[self.fold :: self.folds]
                held = len(validated)
                others = [i for n, i in enumerate(rest) if n % self.folds != self.fold]
                order = validated + aside + others
            if held + tested >= len(mine):
                raise UserError(
                    f"{self.folder}: class {name!r} has {counted(len(mine), 'image')}, of which "
                    "none is left to train on"
                )
            parts["val"] += [mine[i] for i in order[:held]]
            parts["test"] += [mine[i] for i in order[held : held + tested]]
            parts["train"] += [mine[i] for i in order[held + tested :]]
        return parts

    def _sift(
        self, listing: Listing, parts: dict[str, list[Item]], checked: dict[Path, Checked]
    ) -> _Contents:
        """Leaves out what cannot be read, and what is in another split already.

        Raises:
            UserError: nothing of a split is left, or no training image of a class.
        """
        left_out = list(listing.left_out)
        kept: dict[str, list[Item]] = {}
        elsewhere: dict[str, Path] = {}
        for part in ("test", "val", "train"):  # a copy goes from the training images first
            kept[part], here = [], dict[str, Path]()
            for path, label in parts[part]:
                one = checked[path]
                if one.problem:
                    reason = UNREADABLE[not one.problem.startswith("is empty")]
                    left_out.append(LeftOut(path, reason, one.problem, part))
                elif one.digest in elsewhere:
                    detail = f"({part}) has the bytes of {self._relative(elsewhere[one.digest])}"
                    left_out.append(LeftOut(path, "the same bytes in two splits", detail, part))
                else:
                    kept[part].append((path, label))
                    here[one.digest] = path
            elsewhere |= here
        for part, items in parts.items():
            missing = {label for _, label in items} - {label for _, label in kept[part]}
            if missing and (part == "train" or not kept[part]):
                name = listing.classes[min(missing)]
                why = next(one for one in left_out if one.part == part)
                raise UserError(
                    f"{self.folder}: no {part} image of {name!r} is left: {why.path} {why.detail}"
                )
        return _Contents(listing.classes, kept, left_out, checked)

    def fetch(self) -> None:
        """Checks the folder whole, the first time.

        Raises:
            UserError: an image cannot be read, and is not to be skipped.
        """
        contents = self.contents()
        if contents.unreadable and self.corrupt == "error":
            raise self._unreadable(contents.unreadable, "or give --data.corrupt skip")
        if contents.left_out and not self._reported:
            first, number = contents.left_out[0], len(contents.left_out)
            verb = "is" if number == 1 else "are"
            self._warn(
                f"{self.folder}: {number:,} of its files and folders {verb} not read, "
                f"{first.path} ({first.reason}) among them: fit --check_data lists them"
            )

    def _unreadable(self, those: Sequence[LeftOut], advice: str) -> UserError:
        more = f", and {len(those) - 1} more cannot be read" if those[1:] else ""
        return UserError(f"{those[0].path} {those[0].detail}{more}. Repair or remove it, {advice}")

    def _warn(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            warnings.warn(text, stacklevel=3)

    # -- what every data module says -------------------------------------------------------------

    @property
    def name(self) -> str:  # type: ignore[override]
        return "ImageFolder" if self.folder is None else self.folder.resolve().name

    @property
    def classes(self) -> list[str]:  # type: ignore[override]
        return self.contents().classes

    @property
    def channels(self) -> int:
        """Of what the network sees: as given, else as the images have them."""
        if self._channels is None:
            if self.folder is None:
                return 3
            contents = self.contents()
            self._channels = 1 if contents.gray() == contents.images() else 3
        return self._channels

    @property
    def mean(self) -> list[float]:  # type: ignore[override]
        return list(self._mean or MEAN[self.channels])

    @property
    def std(self) -> list[float]:  # type: ignore[override]
        return list(self._std or STD[self.channels])

    @property
    def input_shape(self) -> list[int]:  # type: ignore[override]
        return [self.channels, self.image_size, self.image_size]

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "crop_pct": CROP_PCT}

    def network_arguments(self) -> dict[str, int]:
        if self.folder is None:  # of a recipe that is only looked at
            return {"image_size": self.image_size}
        return super().network_arguments()

    @property
    def has_test(self) -> bool:  # type: ignore[override]
        """Whether there are images to test on."""
        return bool(self.contents().parts["test"])

    def checksums(self) -> dict[str, str]:
        """Computes one digest of the files' names and sizes."""
        contents = self.contents()
        listing = [
            f"{self._relative(path)} {contents.checked[path].size}"
            for items in contents.parts.values()
            for path, _ in items
        ]
        digest = hashlib.sha256("\n".join(sorted(listing)).encode()).hexdigest()
        return {"names and sizes of the files": digest}

    def _relative(self, path: Path) -> str:
        return Path(os.path.relpath(path, self.folder)).as_posix()

    def files(self, split: Split) -> list[str]:
        """Lists each image file of a split, relative to the folder, in the order of ``plain``."""
        self.prepare_data()
        return [self._relative(path) for path, _ in self.contents().parts[PARTS[split]]]

    def sizes(self) -> dict[str, int]:
        self.prepare_data()
        return {part: len(self.contents().parts[part]) for part in PARTS.values()}

    def class_counts(self) -> Tensor:
        labels = torch.tensor([label for _, label in self.contents().parts["train"]])
        return labels.bincount(minlength=len(self.classes))

    def plain(self, split: Split, batch: int = 64) -> Iterator[tuple[Tensor, Tensor]]:
        self.prepare_data()
        for images, labels, problems in self._decoded(PARTS[split], batch):
            self._refuse(problems)
            if len(images):
                yield images, labels

    # -- Lightning's hooks -----------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        self.prepare_data()
        if stage == "predict":
            those = [one for one in self.contents().unreadable if one.part == "test"]
            if those:
                raise self._unreadable(those, "for a prediction is for every file")

    def _workers(self) -> int:
        if self.workers is not None:
            return self.workers
        processes = self.trainer.num_devices if self.trainer is not None else 1
        return ((os.cpu_count() or 1) - 1) // max(1, processes)

    def _loader(self, items: list[Item], crop: v2.Transform, **options: Any) -> DataLoader[Any]:
        return DataLoader(
            _Images(items, crop, self.channels, self.background),
            num_workers=self._workers(),
            collate_fn=_collate,
            pin_memory=torch.cuda.is_available(),
            **options,
        )

    def training_sample(self) -> DataLoader[Any]:
        parts = self.contents().parts
        # Decoding takes its time: no more images than validation decodes.
        most = min(TRAINING_SAMPLE, len(parts["val"]))
        return self._decoded("train", self.batch_size, every=-(-len(parts["train"]) // most))

    def _decoded(self, part: str, batch: int, every: int = 1) -> DataLoader[Any]:
        """Images in order, cropped as for evaluation; of several processes, each its share."""
        trainer, items = self.trainer, self.contents().parts[part][::every]
        rank, world = (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)
        if len(items) < world:
            raise UserError(f"{self.folder}: fewer {part} images than processes")
        return self._loader(
            items, self._crop, batch_size=batch, sampler=Share(len(items), rank, world)
        )

    def train_dataloader(self) -> DataLoader[Any]:
        items = self.contents().parts["train"]
        world = self.trainer.world_size if self.trainer is not None else 1
        if len(items) < world:
            raise UserError(f"{self.folder}: fewer training images than processes")
        weights = draws(self.sampling_weights, self.class_counts())
        order: dict[str, Any] = {"shuffle": True}
        if weights is not None:
            labels = torch.tensor([label for _, label in items])
            order = {"sampler": Resampled(weights[labels])}
        # A process that has less than a batch trains on what it has.
        drop_last = len(items) // world >= self.batch_size
        return self._loader(
            items, self._training_crop, batch_size=self.batch_size, drop_last=drop_last, **order
        )

    def val_dataloader(self) -> DataLoader[Any]:
        return self._decoded("val", self.batch_size)

    def test_dataloader(self) -> DataLoader[Any]:
        if not self.has_test:
            raise UserError(f"{self.folder} has no test images: add a test folder next to train")
        return self._decoded("test", self.batch_size)

    def predict_dataloader(self) -> DataLoader[Any]:
        return self.test_dataloader()

    def augment(self, images: Tensor) -> Tensor:
        """Flips and RandAugment of uint8 images (B, C, H, W), each image for itself."""
        if self.flip:
            mirrored = torch.rand(len(images), device=images.device) < 0.5
            images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
        if self.randaugment is not None:
            images = torch.stack([self.randaugment(image) for image in images])
        return images

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        images, labels, problems = batch
        self._refuse(problems)
        training = self.trainer is not None and self.trainer.training
        if training and not len(images):
            raise UserError(f"a whole training batch cannot be read: {problems[0]}")
        if not training:
            return self.normalize(images), labels
        devices = [images.device] if images.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(step_seed(self.trainer))
            images = self.normalize(self.augment(images))
            mixers = [
                mixer(alpha=alpha, num_classes=len(self.classes))
                for mixer, alpha in ((v2.MixUp, self.mixup), (v2.CutMix, self.cutmix))
                if alpha
            ]
            return v2.RandomChoice(mixers)(images, labels) if mixers else (images, labels)

    def _refuse(self, problems: list[str]) -> None:
        """Names what could be read when the folder was checked, and cannot any more."""
        predicting = self.trainer is not None and self.trainer.predicting
        if problems and (self.corrupt == "error" or predicting):
            raise UserError(f"{problems[0]}: it has changed since the folder was checked")
        for problem in problems:
            self._warn(f"skipped: {problem}")


def _check_statistics(
    mean: Sequence[float] | None, std: Sequence[float] | None, channels: int | None
) -> int | None:
    """The number of channels that mean and deviation are for, or that was given.

    Raises:
        UserError: they are for another number, or a deviation is not above 0.
    """
    given = {len(numbers) for numbers in (mean, std) if numbers is not None}
    given |= set() if channels is None else {channels}
    if len(given) > 1 or not given <= {1, 3} or (std is not None and min(std) <= 0):
        raise UserError(
            "data.mean and data.std are a number for each of data.channels (1 or 3), and std is "
            "above 0"
        )
    return next(iter(given), None)
