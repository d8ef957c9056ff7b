"""Where data lie, whether they are whole, and how they get there."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from filelock import FileLock

from zoo.data.module import DataMissing
from zoo.errors import UserError


def data_folder() -> Path:
    """Returns the folder of downloaded data: ``ZOO_DATA`` if set, else the user's cache."""
    if folder := os.environ.get("ZOO_DATA"):
        return Path(folder)
    return cache_folder()


def cache_folder() -> Path:
    """Returns the zoo's folder in the user's cache (``XDG_CACHE_HOME`` or ``~/.cache``)."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "zoo"


def check_file(path: Path, expected: str, algorithm: str) -> None:
    """Compares a file with its published checksum.

    Raises:
        UserError: it is truncated or altered.
    """
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, algorithm).hexdigest()
    if digest != expected:
        raise UserError(
            f"{path} is truncated or altered ({algorithm} {digest[:12]}…, expected "
            f"{expected[:12]}…): delete it, and it will be downloaded again"
        )


def download(peer: Callable[..., Any], name: str, folder: Path, holding: str) -> None:
    """Lets one of torchvision's data sets download itself, in one process; others wait for it.

    Args:
        peer: the data set's class.
        name: of the data.
        folder: where the files will be.
        holding: what ``ZOO_DATA`` must hold to do without, for the error's advice.

    Raises:
        DataMissing: there is no internet connection, or the files are not there.
    """
    root = data_folder()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f"{name}.lock"):
            peer(str(root), download=True)
    except (OSError, RuntimeError) as error:  # URLError is an OSError
        raise DataMissing(
            f"{name} is not in {folder} and could not be downloaded ({error}). Set ZOO_DATA to a "
            f"folder that holds {holding}, or train with an internet connection"
        ) from None
