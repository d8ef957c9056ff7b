"""Options of a command line, for every command that is not Lightning's own."""

from __future__ import annotations

import argparse
import math
from typing import Any, NoReturn

from zoo.core.terminal import say_loading
from zoo.core.text import nearest
from zoo.errors import UserError


def _finite(text: str) -> float:
    """A number; ``nan``, which passes every test of a range, is none."""
    if not math.isfinite(value := float(text)):
        raise argparse.ArgumentTypeError(f"{text} is not a finite number")
    return value


def _whole(text: str) -> int:
    """A whole number that torch can hold, as a seed or a size."""
    if abs(value := int(text)) >= 2**63:
        raise argparse.ArgumentTypeError(f"{text} is larger than 64 bits")
    return value


class Parser(argparse.ArgumentParser):
    """Parses options; errors are one line, with the nearest option where one is misspelled.

    Args:
        command: its name.
        description: for ``--help``.
        loads: whether the command imports torch once its options are parsed, which takes seconds.
    """

    def __init__(self, command: str, description: str, loads: bool = True) -> None:
        super().__init__(
            prog=f"python -m zoo {command}", description=description, allow_abbrev=False
        )
        self.register("type", float, _finite)
        self.register("type", int, _whole)
        self.command, self.loads = command, loads

    def parse_args(self, *args: Any, **options: Any) -> Any:
        parsed = super().parse_args(*args, **options)
        if self.loads:
            say_loading(self.command)
        return parsed

    def error(self, message: str) -> NoReturn:
        flags = [flag for action in self._actions for flag in action.option_strings]
        if message.startswith("unrecognized arguments: -"):
            message += nearest(message.split()[2], flags)
        raise UserError(message)
