"""Files that are written whole or not at all, read within bounds, and their checksums."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from zoo.errors import UserError

LARGEST_TEXT = 64 * 2**20  # bytes; no config.json or recipe is as large
FULL = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Gives a temporary name to write to, which is renamed to ``path`` at the end.

    Args:
        path: the file; its folder is made where it does not exist.

    Raises:
        UserError: the disk is full; the message names it.
    """
    partial = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        os.replace(partial, path)
    except BaseException as error:
        full = is_full(error, path.parent)  # before what was written frees space
        partial.unlink(missing_ok=True)
        if full:
            raise UserError(f"{path} was not written: {full_disk(path)}") from error
        raise


def is_full(error: BaseException, folder: Path) -> bool:
    """Returns whether a write failed because the disk is full, by torch's words too."""
    if isinstance(error, OSError):
        return error.errno in FULL
    if not isinstance(error, Exception) or not folder.is_dir():
        return False
    return "os error 28" in str(error) or shutil.disk_usage(folder).free < 2**16


def full_disk(path: Path) -> str:
    """Writes the message for a full disk: where it is mounted, and what to do."""
    place = path.resolve()
    while not os.path.ismount(place):
        place = place.parent
    return f"the disk mounted at {place} is full (or your quota of it): free some space"


def ready_folder(path: Path) -> Path:
    """Makes a folder, and sees that files can be written in it, before work whose results go there.

    Raises:
        UserError: there is a file of that name, or nothing may be written there.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        reason = full_disk(path) if error.errno in FULL else error.strerror
        where = f"nothing can be written in {path} ({reason})"
        raise UserError(f"{where}: give another folder") from None
    return path


def is_file(path: Path) -> bool:
    """Returns whether there is such a file, also for a name that the system refuses."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    """Returns whether there is such a folder, also for a name that the system refuses."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def write_text(path: Path, text: str) -> None:
    """Writes a text as UTF-8, whole or not at all."""
    with written_whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON value, whole or not at all."""
    write_text(path, json_text(content))


def json_text(content: Any) -> str:
    """Formats a JSON value as the zoo writes it."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def read_text(path: Path) -> str:
    """Reads a UTF-8 text of somebody else's.

    Raises:
        UserError: there is no such file, it is not text, or too large to be what it should be.
    """
    if not is_file(path):
        raise UserError(f"no such file: {path}")
    if (size := path.stat().st_size) > LARGEST_TEXT:
        raise UserError(f"{path} has {size:,} bytes: it is not one of the zoo's files")
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text file (byte {error.start} is not UTF-8)") from None


def read_json(path: Path) -> Any:
    """Reads a JSON file of somebody else's.

    Raises:
        UserError: there is no such file, or it is not JSON.
    """
    text = read_text(path)
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise UserError(f"{path}: not a file of the zoo: it is nested too deeply") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}: restore the file") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


def sha256(path: Path) -> str:
    """Computes the sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def exchange(one: Path, other: Path) -> bool:
    """Swaps two folders in one step, where the system can: at no time is either of them missing.

    Returns:
        Whether it was done.
    """
    if not sys.platform.startswith("linux"):
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    at_cwd, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename is not None and not rename(
        at_cwd, os.fsencode(one), at_cwd, os.fsencode(other), swap
    )
