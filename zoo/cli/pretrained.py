"""The network of a recipe that names none: that of the weights it starts from."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from zoo.checkpoints.source import read_source
from zoo.cli import run_folder
from zoo.errors import UserError

# What of a network follows from the data of a fit, and what the data call it.
FOLLOWS = {"num_classes": "classes", "in_channels": "input_shape"}


def typed_option(typed: Sequence[str], name: str) -> str | None:
    """The value of an option on the command line; the last one counts."""
    value = None
    for index, word in enumerate(typed):
        if word == name and index + 1 < len(typed):
            value = typed[index + 1]
        elif word.startswith(f"{name}="):
            value = word.removeprefix(f"{name}=")
    return value


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
    source = _weights(typed, config, recipe)
    if source is None:
        return None
    found = read_source(source)
    if found.network is None:
        raise UserError(
            f"recipe {recipe} takes its network from the weights, and {source} holds weights alone:"
            " name it in a recipe of your own, base: and model.init_args.network"
        )
    return {
        "class_path": f"zoo.networks.{found.network['name']}",
        "init_args": dict(found.network["args"]),
    }


def _weights(typed: Sequence[str], config: Any, recipe: str) -> str | Path | None:
    if weights := typed_option(typed, "--weights"):
        return weights
    if wanted := typed_option(typed, "--ckpt_path"):
        runs = typed_option(typed, "--runs") or config.get("runs") or "runs"
        name = typed_option(typed, "--name") or run_folder.recipe_name([recipe])
        return run_folder.find_checkpoint(wanted, Path(runs, name), "test") or wanted
    return typed_option(typed, "--init_from") or config.get("init_from")


def follow_data(options: Any, typed: Sequence[str]) -> None:
    """Gives a network that starts from weights the classes and channels of the data, in place.

    Args:
        options: what was typed and what the recipe says.
        typed: the command line; what is typed stands.
    """
    network = options.get("model.init_args.network.init_args")
    data = options.get("data")
    if options.get("init_from") is None or network is None or data is None:
        return
    if options.get("ckpt_path") is not None or options.get("weights") is not None:
        return
    module, _, name = data.class_path.rpartition(".")
    described = getattr(import_module(module), name)(**data.init_args.as_dict()).describe()
    for argument, fact in FOLLOWS.items():
        given = any(
            typed_option(typed, f"--model.{path}{argument}") is not None
            for path in ("network.", "network.init_args.", "init_args.network.init_args.")
        )
        if argument in network and fact in described and not given:
            value = described[fact]
            network[argument] = len(value) if argument == "num_classes" else value[0]
