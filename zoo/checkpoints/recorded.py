"""The data that a checkpoint or a run was trained on, from the recipe that it records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zoo import recipes, registry
from zoo.checkpoints.source import last_of_run
from zoo.checkpoints.store import CONFIG, folder_of, names
from zoo.core.checkpoint_config import read_config
from zoo.core.files import is_file
from zoo.errors import UserError


def recorded_recipe(source: str | Path) -> dict[str, Any]:
    """Reads the resolved recipe that trained some weights.

    Args:
        source: a shipped name, the folder of a run or of a checkpoint, or a ``.ckpt`` in its run's.

    Raises:
        UserError: none is recorded.
    """
    path = Path(source)
    file = path if path.suffix == ".ckpt" else None if str(source) in names() else last_of_run(path)
    recipe: dict[str, Any] | None = None
    if file is not None:
        config = file.parent.parent / "config.yaml"
        recipe = recipes.read(config) if is_file(config) else None
    else:
        recipe = read_config(folder_of(source)).get("recipe")
    if recipe is None or "data" not in recipe:
        raise UserError(
            f"{source} does not say on which data it was trained (config.yaml of its run, or "
            f"{CONFIG}): give --recipe NAME where the command takes it"
        )
    return recipe


def data_of(source: str | Path) -> Any:
    """Builds the data module that a checkpoint was trained on, ready to be read.

    Raises:
        UserError: no recipe is recorded, or its data are not available.
    """
    return data_module(recorded_recipe(source))


def data_module(recipe: dict[str, Any]) -> Any:
    """Builds the data module of a resolved recipe, ready to be read."""
    section = recipe["data"]
    name = section["class_path"].rsplit(".", 1)[-1]
    entry = registry.find(registry.DATA, name, "data set")
    module = registry.load(entry.data)(**section.get("init_args", {}))
    module.prepare_data()
    return module


def name_of(source: str | Path) -> str:
    """Names files that are made from a checkpoint: by its folder, or by its recipe."""
    path = Path(source)
    if path.suffix == ".ckpt" and path.parent.name == "checkpoints":
        path = path.parent.parent
    if path.name.startswith("version_"):
        path = path.parent
    return path.stem if path.suffix == ".ckpt" else path.name
