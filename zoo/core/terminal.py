"""What a person at a terminal reads while a command runs."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


def say_loading(command: str) -> None:
    """Prints one line on a terminal before imports that take seconds; nothing in a log file."""
    if sys.stderr.isatty() and "torch" not in sys.modules:
        print(f"zoo {command}: loading PyTorch …", file=sys.stderr, flush=True)


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Prints a warning as one line, without the file and the source line that raised it."""
    form = warnings.formatwarning
    warnings.formatwarning = _plain
    try:
        yield
    finally:
        warnings.formatwarning = form


def _plain(message: Warning | str, *_: object, **__: object) -> str:
    return f"warning: {message}\n"
