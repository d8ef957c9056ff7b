"""``fit``, ``validate``, ``test`` and ``predict``: help at once, all else by Lightning."""

from __future__ import annotations

from functools import partial

from zoo.cli.help import class_help, help_of
from zoo.core.terminal import say_loading


def start(command: str, arguments: list[str]) -> int:
    """Runs ``python -m zoo fit|validate|test|predict …``; returns the exit code."""
    if {"-h", "--help"} & set(arguments):
        print(help_of(command, arguments), end="")
        return 0
    if (text := class_help(command, arguments)) is not None:
        print(text, end="")
        return 0
    say_loading(command)
    from zoo.cli.app import run  # which imports Lightning

    return run(command, arguments)


fit, validate, test, predict = (
    partial(start, command) for command in ("fit", "validate", "test", "predict")
)
