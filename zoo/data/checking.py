"""Reads every image file once, in parallel, and remembers what was found by size and date."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import PIL
from filelock import FileLock
from rich.console import Console
from rich.progress import track

from zoo.core.files import write_text
from zoo.data.decode import is_gray, open_image, why_unreadable
from zoo.data.download import cache_folder
from zoo.errors import UserError

# What another version of the decoder found does not count.
READER = f"1, Pillow {PIL.__version__}"


class Checked(NamedTuple):
    """What was found out about a file."""

    size: int  # bytes
    modified: int  # nanoseconds since 1970
    digest: str  # of its bytes; equal files have equal ones
    gray: bool
    problem: str  # why it cannot be read, to follow its name; nothing where it can


def check_files(folder: Path, files: Sequence[Path]) -> list[Checked]:
    """Reads and decodes every file, but for those that have not changed since they were checked.

    Args:
        folder: which the files lie in; what was found is kept under its name in the user's cache.
        files: images, or what should be.

    Returns:
        What was found, in the order of the files.
    """
    name = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]
    cache = cache_folder() / "checked" / f"{name}.json"
    with _alone(cache):
        known = _read(cache)
        found = {str(file): known.get(str(file)) for file in files}
        new = [file for file in files if not _is_unchanged(file, found[str(file)])]
        if new:
            found |= dict(zip(map(str, new), _check_all(folder, new), strict=True))
            with suppress(OSError, UserError):  # a full disk among them
                write_text(cache, json.dumps({"reader": READER, "files": found}))
    return [one for one in found.values() if one is not None]


@contextmanager
def _alone(cache: Path) -> Iterator[None]:
    """Of several processes one reads the files, and the others what it found."""
    lock = FileLock(cache.with_suffix(".lock"))
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError:  # a home that cannot be written to: nothing is remembered
        yield
        return
    try:
        yield
    finally:
        lock.release()


def _read(cache: Path) -> dict[str, Checked]:
    """What an earlier check left; nothing where it cannot be used."""
    try:
        content = json.loads(cache.read_text(encoding="utf-8"))
        if content["reader"] == READER:
            return {file: Checked(*entry) for file, entry in content["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return {}


def _is_unchanged(file: Path, before: Checked | None) -> bool:
    if before is None:
        return False
    try:
        status = file.stat()
    except OSError:
        return False
    return (before.size, before.modified) == (status.st_size, status.st_mtime_ns)


def _check_all(folder: Path, files: Sequence[Path]) -> list[Checked]:
    # Threads: reading, hashing and decoding all let the others go on.
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        results = pool.map(_check, files)
        return list(
            track(
                results,
                f"checking {folder.name}",
                len(files),
                console=Console(stderr=True),
                transient=True,
                disable=not sys.stderr.isatty(),
            )
        )


def _check(file: Path) -> Checked:
    """Reads one file whole, and decodes it as far as shows whether it can be."""
    size = modified = 0
    digest, gray = "", False
    try:
        status = file.stat()
        size, modified = status.st_size, status.st_mtime_ns
        content = file.read_bytes()
        digest = hashlib.blake2b(content, digest_size=16).hexdigest()
        with open_image(content) as image:
            gray = is_gray(image)
            image.draft("RGB", (8, 8))  # a JPEG at an eighth of its size: all its bytes are read
            image.load()
    except Exception as error:  # PIL has many for a broken file
        return Checked(size, modified, digest, gray, why_unreadable(error))
    return Checked(size, modified, digest, gray, "")
