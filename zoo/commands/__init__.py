"""One small file for each command that is not Lightning's own; each has ``main(arguments)``."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
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


WEIGHTS_HELP = (
    "a shipped name, a run's or checkpoint's folder, .ckpt, timm:NAME or hf-hub:USER/NAME"
)


def add_weights_options(parser: argparse.ArgumentParser, of_recipe: str) -> None:
    """Adds --recipe, --weights and --ckpt_path, which mean the same in every command.

    Args:
        parser: of a command.
        of_recipe: help of --recipe, what the command takes from it.
    """
    parser.add_argument("--recipe", help=of_recipe)
    parser.add_argument("--weights", help=WEIGHTS_HELP)
    parser.add_argument(
        "--ckpt_path", help="last or best of the recipe's newest run, or any of --weights' names"
    )


def chosen_weights(options: Any, command: str) -> str | Path:
    """Finds the weights that --weights, --ckpt_path or --recipe alone name.

    Raises:
        UserError: none of them was given, two contradict each other, or there is no such run.
    """
    from zoo import recipes
    from zoo.cli.run_folder import find_checkpoint, recipe_name

    if options.weights and options.ckpt_path:
        raise UserError("--weights and --ckpt_path both name weights: give one of them")
    if options.weights:
        return str(options.weights)
    if options.ckpt_path not in (None, "last", "best"):
        return str(options.ckpt_path)
    if options.recipe is None:
        raise UserError(f"{command} needs weights: give --weights X or --recipe NAME")
    name = recipe_name([options.recipe])
    if options.ckpt_path is None:
        return recipes.shipped_weights(name)
    found = find_checkpoint(options.ckpt_path, Path("runs", name), command)
    assert found is not None
    return found
