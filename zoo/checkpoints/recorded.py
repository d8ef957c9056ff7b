"""The data that a checkpoint or a run was trained on, from the recipe that it records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zoo import recipes, registry
from zoo.checkpoints.store import CONFIG, folder_of
from zoo.core.files import is_file
from zoo.errors import UserError


def recorded_recipe(source: str | Path) -> dict[str, Any]:
    """The resolved recipe that trained a checkpoint.

    Args:
        source: as ``zoo.load`` takes it: a shipped name, a folder, or a ``.ckpt`` in its run's
            folder.

    Raises:
        UserError: none is recorded.
    """
    path = Path(source)
    run = path.parent.parent if path.suffix == ".ckpt" else path
    if is_file(run / "config.yaml"):
        return recipes.read(run / "config.yaml")
    if path.suffix != ".ckpt":
        recipe: dict[str, Any] | None = recipes.read_config(folder_of(source)).get("recipe")
        if recipe is not None:
            return recipe
    raise UserError(
        f"{source} records no recipe (config.yaml of its run, or {CONFIG}): what it was trained on "
        "is not known"
    )


def data_of(source: str | Path) -> Any:
    """The data module of a checkpoint's data, ready to be read.

    Raises:
        UserError: no recipe is recorded, or its data are not available.
    """
    return data_module(recorded_recipe(source))


def data_module(recipe: dict[str, Any]) -> Any:
    """The data module of a resolved recipe, ready to be read."""
    section = recipe["data"]
    name = section["class_path"].rsplit(".", 1)[-1]
    entry = registry.find(registry.DATA, name, "data set")
    module = registry.load(entry.data)(**section.get("init_args", {}))
    module.prepare_data()
    return module


def name_of(source: str | Path) -> str:
    """What to call files made from a checkpoint: its folder's name, or its recipe's."""
    path = Path(source)
    if path.suffix == ".ckpt" and path.parent.name == "checkpoints":
        path = path.parent.parent
    if path.name.startswith("version_"):
        path = path.parent
    return path.stem if path.suffix == ".ckpt" else path.name
