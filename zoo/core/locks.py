"""Locks among processes."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def held(file: Path, wait: bool = False) -> Iterator[bool]:
    """Takes a lock among processes, which the system releases when one of them is killed.

    Args:
        file: of the lock, made where there is none; what it holds is left as it is.
        wait: for the process that has it.

    Yields:
        Whether the lock is ours.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        try:
            yield True
        finally:  # a process that was forked from this one may keep the file open
            fcntl.flock(opened, fcntl.LOCK_UN)
