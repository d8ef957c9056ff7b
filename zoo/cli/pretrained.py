"""Finds the network of a recipe that names none: that of the weights it starts from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoo.checkpoints.source import read_source, recipe_of
from zoo.cli import run_folder
from zoo.cli.following import FOLLOWING
from zoo.errors import UserError


def typed_option(typed: Sequence[str], name: str) -> str | None:
    """Finds the value of an option on the command line; the last one counts."""
    value = None
    for index, word in enumerate(typed):
        if word == name and index + 1 < len(typed):
            value = typed[index + 1]
        elif word.startswith(f"{name}="):
            value = word.removeprefix(f"{name}=")
    return value


def with_recipe(arguments: list[str]) -> list[str]:
    """Adds the recipe that trained --weights to a command line that names none."""
    named = any(word.split("=")[0] in ("--recipe", "--config") for word in arguments)
    weights = typed_option(arguments, "--weights")
    recipe = recipe_of(weights) if weights and not named else None
    return arguments if recipe is None else ["--recipe", recipe, *arguments]


def missing_network(typed: Sequence[str], config: Any, recipe: str) -> dict[str, Any] | None:
    """Looks up the network that a recipe leaves to the weights.

    Args:
        typed: the command line.
        config: what the recipe says.
        recipe: its name.

    Returns:
        Its class and arguments as a recipe has them; None where the recipe names a network, or
        there are no weights.

    Raises:
        UserError: the weights do not say what their network is.
    """
    if config.get("model.class_path") is None or config.get("model.init_args.network") is not None:
        return None
    given = _given_weights(typed, config, recipe)
    source = given or typed_option(typed, "--init_from") or config.get("init_from")
    if source is None:
        return None
    found = read_source(source)
    if found.network is None:
        raise UserError(
            f"recipe {recipe} takes its network from the weights, and {source} holds weights alone:"
            " name it in a recipe of your own, base: and model.init_args.network"
        )
    # What starts from weights has the classes and the channels of its own data.
    args = {
        name: value
        for name, value in found.network["args"].items()
        if given is not None or name not in FOLLOWING
    }
    return {"class_path": f"zoo.networks.{found.network['name']}", "init_args": args}


def _given_weights(typed: Sequence[str], config: Any, recipe: str) -> str | Path | None:
    """What --weights or --ckpt_path names."""
    if weights := typed_option(typed, "--weights"):
        return weights
    if wanted := typed_option(typed, "--ckpt_path"):
        runs = typed_option(typed, "--runs") or config.get("runs") or "runs"
        name = typed_option(typed, "--name") or run_folder.recipe_name([recipe])
        return run_folder.find_checkpoint(wanted, Path(runs, name), "test") or wanted
    return None
