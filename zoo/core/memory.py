"""How the process treats memory."""

from __future__ import annotations

import ctypes
import os
import sys


def keep_freed_memory() -> None:
    """Tells glibc to keep what one step frees for the next, for the whole process.

    Otherwise every large tensor is given back to the kernel, and its pages are faulted in again at
    the next step: a twentieth of a training step on a CPU (tests/benchmarks/allocator.py). What
    the user set in glibc's own environment variables stands; other systems are left alone.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library
        return
    trim_threshold, mmap_max, arena_max = -1, -4, -8  # as malloc.h names them
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(arena_max, 1)  # autograd's threads free what ours allocated
