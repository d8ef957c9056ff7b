"""Anyone's folder of images: a sub-folder a class, JPEG or PNG, of any size."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from torchvision.transforms import v2

from zoo.core.files import is_folder
from zoo.core.seeds import step_seed
from zoo.core.text import shown
from zoo.data.images import TRAINING_SAMPLE, LabelledImages, Split, check_folds
from zoo.errors import UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
Item = tuple[Path, int]
_PARTS: dict[Split, str] = {"train": "train", "validation": "val", "test": "test"}


def _folders(root: Path) -> list[str]:
    """The visible sub-folders.

    Raises:
        UserError: a name is not UTF-8; a checkpoint, which keeps the classes, could not hold it.
    """
    found = sorted(p.name for p in root.iterdir() if p.is_dir() and not _hidden(p.name))
    for name in found:
        _check_name(root / name)
    return found


def _hidden(name: str) -> bool:
    """``.ipynb_checkpoints`` and its like hold copies, and a NAS keeps thumbnails in ``@eaDir``."""
    return name.startswith((".", "@"))


def _check_name(path: Path) -> None:
    try:
        path.name.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"{os.fsencode(path)!r} has a name that is not UTF-8: rename it") from None


def _is_readable(path: Path) -> bool:
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.draft("RGB", (8, 8))  # a JPEG at an eighth of its size: all its bytes are read
            image.load()
    except Exception:  # PIL has many for a broken file
        return False
    return True


class _Images(Dataset[tuple[Tensor | None, int, str]]):
    """Decoded, cropped and resized images; None for one that cannot be read."""

    def __init__(self, items: list[Item], crop: v2.Transform) -> None:
        self.items, self.crop = items, crop

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple[Tensor | None, int, str]:
        path, label = self.items[index]
        try:
            pixels = _decode(path)
        except Exception:  # PIL has many for a broken file, a decompression bomb among them
            return None, label, str(path)
        return self.crop(pixels), label, str(path)


def _decode(path: Path) -> Tensor:
    """uint8 (3, H, W), upright."""
    from PIL import Image, ImageOps

    with Image.open(path) as opened:
        image: Image.Image = ImageOps.exif_transpose(opened)
        if image.mode.startswith("I"):  # 16 bits a pixel, which convert would clip to white
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        return v2.functional.pil_to_tensor(image.convert("RGB"))


def _collate(samples: list[tuple[Tensor | None, int, str]]) -> tuple[Tensor, Tensor, list[str]]:
    """Images uint8 (B, C, H, W), labels (B,), and the paths of the unreadable ones."""
    images = [image for image, _, _ in samples if image is not None]
    labels = [label for image, label, _ in samples if image is not None]
    broken = [path for image, _, path in samples if image is None]
    stacked = torch.stack(images) if images else torch.empty(0, 3, 1, 1, dtype=torch.uint8)
    return stacked, torch.tensor(labels, dtype=torch.long), broken


class _Share(DistributedSampler[Any]):
    """Every ``world``-th sample, each exactly once over all processes.

    Lightning's own repeats some until all processes have equally many, and so counts them twice.
    """

    def __init__(self, samples: int, rank: int, world: int) -> None:
        self.indices = range(rank, samples, world)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)

    def set_epoch(self, epoch: int) -> None:
        """The order is always the same."""


class ImageFolder(LabelledImages):
    """A folder of images with a sub-folder for each class.

    Either ``FOLDER/train/CLASS/*`` and, where there are any, ``FOLDER/val/CLASS/*`` and
    ``FOLDER/test/CLASS/*``; or ``FOLDER/CLASS/*``, from which validation and test images are taken
    by fraction and a fixed seed, as validation images are where there is no ``val``. Classes are
    sorted by name; their order goes into the checkpoint. Images are decoded, cropped and resized by
    workers, and augmented in batches on the device. A run that was killed within an epoch begins
    that epoch's order anew.

    Args:
        folder: where the images lie.
        image_size: pixels a side that the network sees.
        batch_size: images a batch and process.
        validation: the fraction of each class held out for validation, without a ``val`` folder.
        test: the fraction held out for testing, without a ``train`` folder; may be 0.
        randaugment: magnitude of RandAugment, 0 to 30 (Cubuk et al. 2020), image by image; 0 for
            none.
        mixup: α of mixup (Zhang et al. 2018); 0 for none.
        cutmix: α of CutMix (Yun et al. 2019); 0 for none. With both, each batch gets one of them.
        flip: mirror half of the training images.
        scale: the least part of an image's area that a training crop shows.
        corrupt: ``error`` stops at an image that cannot be read, before the first step; ``skip``
            leaves it out; either way it is named.
        workers: processes that decode; by default the machine's cores but one, shared by the
            processes that train.
        mean, std: of each channel, ImageNet's by default.
        folds: for cross-validation, how many parts each class's training images are in; not with a
            ``val`` folder.
        fold: the part, from 0, that validates in place of the fraction ``validation``.

    Raises:
        UserError: no such folder, no classes, an empty class, or an image that cannot be read.
    """

    def __init__(
        self,
        folder: str,
        image_size: int = 224,
        batch_size: int = 64,
        validation: float = 0.1,
        test: float = 0.1,
        randaugment: int = 9,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        flip: bool = True,
        scale: float = 0.08,
        corrupt: Literal["error", "skip"] = "error",
        workers: int | None = None,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
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
        self.folder, self.image_size, self.batch_size = Path(folder), image_size, batch_size
        self.validation, self.test = validation, test
        self.mixup, self.cutmix, self.corrupt = mixup, cutmix, corrupt
        if workers is not None and workers < 0:
            raise UserError(f"data.workers is {workers}: it cannot be negative")
        if not len(mean) == len(std) == 3 or min(std) <= 0:
            raise UserError("data.mean and data.std are three numbers each, and std is above 0")
        self.workers = workers
        self.mean, self.std = list(mean), list(std)
        self.input_shape = [3, image_size, image_size]
        self.name = self.folder.resolve().name
        self.flip = flip
        self.randaugment = v2.RandAugment(magnitude=randaugment) if randaugment else None
        self._training_crop = v2.RandomResizedCrop(image_size, (scale, 1.0), antialias=True)
        # The shorter side a little longer than what is seen, as is usual.
        self._crop = v2.Compose(
            [v2.Resize(round(image_size / 0.875), antialias=True), v2.CenterCrop(image_size)]
        )
        self.classes: list[str] = []
        self._items: dict[str, list[Item]] = {}
        self._named: set[str] = set()
        self._left_out: dict[str, list[Path]] = {}  # by format
        self._opened: set[str] = set()  # parts of which every file was read once
        self._digest = ""

    # -- finding the images ----------------------------------------------------------------------

    def fetch(self) -> None:
        """Lists the images; nothing is decoded."""
        if self._items:
            return
        if not is_folder(self.folder):
            raise UserError(f"data.folder: no such folder: {self.folder}")
        split = (self.folder / "train").is_dir()
        root = self.folder / "train" if split else self.folder
        self.classes = _folders(root)
        if len(self.classes) < 2:
            raise UserError(
                f"{root}: {len(self.classes)} sub-folders, and there must be one for each class, "
                "two at least"
            )
        found = self._list(root)
        if not split:
            items = self._by_fraction(found, root, self.test)
        else:
            if (self.folder / "val").is_dir():
                if self.folds is not None:
                    raise UserError(
                        f"data.folds is {self.folds}, and {self.folder / 'val'} is there: move its "
                        "images into train, or leave out data.folds"
                    )
                items = {"train": found, "val": self._list(self.folder / "val")}
            else:
                items = self._by_fraction(found, root, test=0)
            has_test = (self.folder / "test").is_dir()
            items |= {"test": self._list(self.folder / "test") if has_test else []}
        self._name_left_out()
        self._items = items
        self.checksums()  # of all that was found, those among them that cannot be read

    def _list(self, root: Path) -> list[Item]:
        items: list[Item] = []
        for label, name in enumerate(self.classes):
            paths = self._images_in(root / name)
            if not paths:
                raise UserError(f"{root / name}: no image in it ({', '.join(SUFFIXES)})")
            items += [(path, label) for path in paths]
        unknown = sorted(set(_folders(root)) - set(self.classes))
        if unknown:
            raise UserError(f"{root / unknown[0]}: a class that the training images do not have")
        return items

    def _images_in(self, folder: Path) -> list[Path]:
        """The images of a class, in folders within it too; others are counted."""
        found = []
        for place, folders, names in os.walk(folder):
            for name in folders:
                if _hidden(name):
                    self._left_out.setdefault("hidden folders", []).append(Path(place, name))
            folders[:] = [name for name in folders if not _hidden(name)]
            for path in (Path(place, name) for name in names if not name.startswith(".")):
                if path.suffix.lower() in SUFFIXES:
                    _check_name(path)
                    found.append(path)
                else:
                    kind = path.suffix.lower() or "no suffix"
                    self._left_out.setdefault(kind, []).append(path)
        return sorted(found)

    def _name_left_out(self) -> None:
        """Warns of what is not read, by format: how many, and which is the first."""
        if self._left_out:
            counts = ", ".join(
                f"{len(paths)} of {shown(kind)} (such as {shown(str(min(paths)))})"
                for kind, paths in sorted(self._left_out.items())
            )
            warnings.warn(
                f"{self.folder}: not read: {counts}; formats: {', '.join(SUFFIXES)}", stacklevel=2
            )

    def _open_all(self, part: str, predicting: bool) -> None:
        """Reads every file of a part once, so that a broken one is found before the first step."""
        if part in self._opened:
            return
        items = self._items[part]
        with ThreadPoolExecutor(max(1, self._workers())) as pool:
            readable = list(pool.map(_is_readable, [path for path, _ in items]))
        broken = [str(path) for (path, _), good in zip(items, readable, strict=True) if not good]
        self._name(broken, predicting)
        kept = [item for item, good in zip(items, readable, strict=True) if good]
        missing = {label for _, label in items} - {label for _, label in kept}
        if missing and (part == "train" or not kept):
            raise UserError(
                f"{self.folder}: no {part} image of {self.classes[min(missing)]!r} can be read"
            )
        self._items[part] = kept
        self._opened.add(part)

    def _by_fraction(self, items: list[Item], root: Path, test: float) -> dict[str, list[Item]]:
        """Every class is split alike, by a fixed seed, whatever the seed of a run.

        Each class for itself: an image more in one of them leaves the others' splits as they are.
        """
        parts: dict[str, list[Item]] = {"train": [], "val": [], "test": []}
        by_class: list[list[Item]] = [[] for _ in self.classes]
        for item in items:
            by_class[item[1]].append(item)
        for name, mine in zip(self.classes, by_class, strict=True):
            generator = torch.Generator().manual_seed(0)
            order = torch.randperm(len(mine), generator=generator).tolist()
            held = max(1, round(len(mine) * self.validation))
            tested = max(1, round(len(mine) * test)) if test else 0
            if self.folds is not None and self.fold is not None:
                # The same images are tested in every fold.
                aside, rest = order[:tested], order[tested:]
                if len(rest) < self.folds:
                    raise UserError(
                        f"{root / name}: {len(rest)} images cannot be in {self.folds} folds"
                    )
                validated = rest[self.fold :: self.folds]
                held = len(validated)
                others = [i for n, i in enumerate(rest) if n % self.folds != self.fold]
                order = validated + aside + others
            if held + tested >= len(mine):
                raise UserError(
                    f"{root / name}: {len(mine)} images, of which none is left to train on"
                )
            parts["val"] += [mine[i] for i in order[:held]]
            parts["test"] += [mine[i] for i in order[held : held + tested]]
            parts["train"] += [mine[i] for i in order[held + tested :]]
        return parts

    @property
    def has_test(self) -> bool:  # type: ignore[override]
        """Whether there are images to test on."""
        self.prepare_data()
        return bool(self._items["test"])

    def checksums(self) -> dict[str, str]:
        """One digest of the files' names and sizes: reading all of them may take hours."""
        if not self._digest:
            listing = [
                f"{path.relative_to(self.folder).as_posix()} {path.stat().st_size}"
                for items in self._items.values()
                for path, _ in items
            ]
            self._digest = hashlib.sha256("\n".join(sorted(listing)).encode()).hexdigest()
        return {"names and sizes of the files": self._digest}

    def files(self, split: Split) -> list[str]:
        """Where each image of a split lies, relative to the folder, in the order of ``plain``."""
        self.prepare_data()
        items = self._items[_PARTS[split]]
        return [path.relative_to(self.folder).as_posix() for path, _ in items]

    def sizes(self) -> dict[str, int]:
        self.prepare_data()
        return {part: len(items) for part, items in self._items.items()}

    def plain(self, split: Split, batch: int = 64) -> Iterator[tuple[Tensor, Tensor]]:
        self.prepare_data()
        for images, labels, broken in self._decoded(_PARTS[split], batch):
            self._name(broken)
            if len(images):
                yield images, labels

    # -- Lightning's hooks -----------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        self.prepare_data()
        # A fit ends with the test: what is wrong with its images is reported before the first step.
        parts = {"fit": ["train", "val", "test"], "validate": ["val"]}.get(stage, ["test"])
        for part in parts:
            self._open_all(part, stage == "predict")

    def _workers(self) -> int:
        if self.workers is not None:
            return self.workers
        processes = self.trainer.num_devices if self.trainer is not None else 1
        return ((os.cpu_count() or 1) - 1) // max(1, processes)

    def training_sample(self) -> DataLoader[Any]:
        items = self._items["train"]
        # Decoding takes its time: no more images than validation decodes.
        most = min(TRAINING_SAMPLE, len(self._items["val"]))
        return self._decoded("train", self.batch_size, every=-(-len(items) // most))

    def _decoded(self, part: str, batch: int, every: int = 1) -> DataLoader[Any]:
        """Images in order, cropped as for evaluation; of several processes, each its share."""
        trainer, items = self.trainer, self._items[part][::every]
        rank, world = (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)
        if len(items) < world:
            raise UserError(f"{self.folder}: fewer {part} images than processes")
        return DataLoader(
            _Images(items, self._crop),
            batch_size=batch,
            sampler=_Share(len(items), rank, world),
            num_workers=self._workers(),
            collate_fn=_collate,
            pin_memory=torch.cuda.is_available(),
        )

    def train_dataloader(self) -> DataLoader[Any]:
        items = self._items["train"]
        world = self.trainer.world_size if self.trainer is not None else 1
        if len(items) < world:
            raise UserError(f"{self.folder}: fewer training images than processes")
        return DataLoader(
            _Images(items, self._training_crop),
            batch_size=self.batch_size,
            shuffle=True,
            # A process that has less than a batch trains on what it has.
            drop_last=len(items) // world >= self.batch_size,
            num_workers=self._workers(),
            collate_fn=_collate,
            pin_memory=torch.cuda.is_available(),
        )

    def val_dataloader(self) -> DataLoader[Any]:
        return self._decoded("val", self.batch_size)

    def test_dataloader(self) -> DataLoader[Any]:
        if not self.has_test:
            raise UserError(f"{self.folder} has no test images: add a test folder beside train")
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
        images, labels, broken = batch
        self._name(broken)
        training = self.trainer is not None and self.trainer.training
        if training and not len(images):
            raise UserError(f"a whole training batch cannot be read, {broken[0]} among it")
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

    def _name(self, broken: list[str], predicting: bool = False) -> None:
        predicting = predicting or (self.trainer is not None and self.trainer.predicting)
        if broken and (self.corrupt == "error" or predicting):
            many = f" and {len(broken) - 1} more" if broken[1:] else ""
            advice = "a prediction is for every file: mend or remove it"
            if not predicting:
                advice = "mend or remove it, or give --data.corrupt skip"
            raise UserError(f"{broken[0]}{many} cannot be read as an image: {advice}")
        for path in broken:
            if path not in self._named:
                self._named.add(path)
                warnings.warn(
                    f"skipped: {path} cannot be read as an image ({len(self._named)} so far)",
                    stacklevel=2,
                )
