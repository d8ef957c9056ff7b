"""Image files to predict on: found, and decoded by other processes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from zoo.core.files import is_file, is_folder
from zoo.data.decode import SUFFIXES, decode, rgb
from zoo.data.transform import Transform
from zoo.errors import UserError


@dataclass(frozen=True)
class ImageFile:
    """A file, and the folders between what was asked for and it."""

    path: Path
    folders: tuple[str, ...] = ()

    def label(self, classes: Sequence[str]) -> str | None:
        """The class that the nearest folder is named after."""
        return next((name for name in reversed(self.folders) if name in classes), None)


def find_images(paths: Sequence[Path]) -> tuple[list[ImageFile], int]:
    """Lists files, and the images in folders and in folders within them, hidden ones left out.

    Args:
        paths: files, which are taken whatever their suffix, and folders.

    Returns:
        The files in order, each once, and how many files in folders have no image suffix.

    Raises:
        UserError: there is no such path, or no image.
    """
    found: dict[Path, ImageFile] = {}
    others: set[Path] = set()
    for path in paths:
        if is_file(path):
            found.setdefault(path, ImageFile(path, (path.resolve().parent.name,)))
        elif not is_folder(path):
            raise UserError(f"no such file or folder: {path}")
        for place, folders, names in os.walk(path):
            folders[:] = sorted(name for name in folders if not name.startswith((".", "@")))
            within = (path.resolve().name, *Path(place).relative_to(path).parts)
            for name in sorted(name for name in names if not name.startswith(".")):
                file = Path(place, name)
                if file.suffix.lower() in SUFFIXES:
                    found.setdefault(file, ImageFile(file, within))
                else:
                    others.add(file)
    if not found:
        raise UserError(
            f"{', '.join(map(str, paths))}: no image in it (by suffix: {', '.join(SUFFIXES)})"
        )
    return list(found.values()), len(others)


@dataclass(frozen=True)
class Decoded:
    """A batch of files: the images that could be read, and why the others could not."""

    indices: list[int]  # of the images, among all files
    images: Tensor  # uint8 (B, C, H, W)
    unreadable: dict[int, str]  # index → reason


class _Files(Dataset[tuple[int, Tensor | str]]):
    def __init__(self, files: Sequence[ImageFile], transform: Transform, background: str) -> None:
        rgb(background)  # else every file would be a row about it
        self.files, self.transform, self.background = files, transform, background

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[int, Tensor | str]:
        path = self.files[index].path
        try:
            image = decode(path, self.transform.channels, self.background)
        except UserError as error:
            return index, str(error)
        return index, self.transform.crop(image)


def _collate(samples: list[tuple[int, Tensor | str]]) -> Decoded:
    images = [(index, image) for index, image in samples if isinstance(image, Tensor)]
    return Decoded(
        [index for index, _ in images],
        torch.stack([image for _, image in images]) if images else torch.empty(0),
        {index: reason for index, reason in samples if isinstance(reason, str)},
    )


def decoded(
    files: Sequence[ImageFile],
    transform: Transform,
    batch_size: int,
    workers: int | None = None,
    background: str = "white",
) -> Iterator[Decoded]:
    """Decodes files in order, by worker processes.

    Args:
        files: what to read.
        transform: gives channels and crop; the images still have to be normalized.
        batch_size: files at a time.
        workers: processes; by default the machine's cores but one, and none for a single batch.
        background: what transparent images are laid on.
    """
    if workers is None:
        workers = 0 if len(files) <= batch_size else max(1, (os.cpu_count() or 1) - 1)
    yield from DataLoader(
        _Files(files, transform, background),
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=_collate,
    )
