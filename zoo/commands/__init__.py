"""One small file for each command that is not Lightning's own; each has ``main(arguments)``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from zoo.errors import UserError

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
