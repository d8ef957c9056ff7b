"""Find, inherit and list recipes. Standard library and yaml only: ``zoo list`` must answer at once.

A recipe is a YAML file with ``model``, ``data`` and ``trainer`` (LightningCLI's sections), and:

- ``base``: the recipe it starts from, by name or by path relative to the file; what the child
  says wins, key by key, and ``callbacks+`` appends.
- ``about``: ``trains`` (one line) and ``parameters`` (a number, held against the network by a
  test), for ``zoo list``.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import yaml

from zoo.core.checkpoint_config import CONFIG, read_config
from zoo.core.files import is_file, read_text
from zoo.core.renamed import renamed_recipe
from zoo.core.text import nearest, shown
from zoo.errors import UserError

OWN_KEYS = ("base", "about")
SECTIONS = ("about", "model", "data", "trainer")
NOT_IN_A_FILE = ("recipe", "config", "print_config", "help")


DEPTH, VALUES = 40, 20_000  # more than this no recipe nests or holds


class _Loader(yaml.SafeLoader):
    """YAML 1.2's floats: a bare ``1e-4`` is a number, as everybody expects, and not a string.

    What aliases stand for is counted where they stand, so that a few lines cannot grow into
    millions of values, and none stands within itself.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = self._values = 0
        self._sizes: dict[str, int] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        anchor, before = event.anchor, self._values
        self._depth, self._values = self._depth + 1, self._values + 1
        if isinstance(event, yaml.AliasEvent):
            if anchor in self.anchors and anchor not in self._sizes:
                self._refuse("an alias stands within what it stands for", event)
            self._values += self._sizes.get(anchor, 0)
        if self._depth > DEPTH or self._values > VALUES:
            self._refuse("it is nested too deeply or too long", event)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if anchor is not None and not isinstance(event, yaml.AliasEvent):
            self._sizes[anchor] = self._values - before
        return node

    def _refuse(self, problem: str, event: Any) -> NoReturn:
        raise yaml.composer.ComposerError(None, None, problem, event.start_mark)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+"
        r"|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)


def shipped_folder(name: str) -> Path:
    """Finds ``recipes`` or ``checkpoints``: the checkout's own folder, else the installed copy."""
    package = Path(__file__).resolve().parent
    if (package.parent / "pyproject.toml").is_file() and (package.parent / name).is_dir():
        return package.parent / name
    return package / f"_{name}"


def names() -> list[str]:
    """Lists every shipped recipe's name, sorted; one in a sub-folder is named ``folder/recipe``."""
    folder = shipped_folder("recipes")
    return sorted(p.relative_to(folder).with_suffix("").as_posix() for p in folder.rglob("*.yaml"))


def find(recipe: str, mentioned_by: Path | None = None) -> Path:
    """Finds the file of a recipe given by name or by path.

    Args:
        recipe: a shipped recipe's name, or a path to a YAML file.
        mentioned_by: the file that mentions it; a relative path is tried from its folder first.

    Raises:
        UserError: there is no such recipe.
    """
    named = shipped_folder("recipes") / f"{recipe}.yaml"
    candidates = [named, Path(recipe)]
    if mentioned_by is not None:
        candidates[1:1] = [mentioned_by.parent / recipe, mentioned_by.parent / f"{recipe}.yaml"]
    for path in candidates:
        if is_file(path):
            return path
    where = f"{mentioned_by}: base: " if mentioned_by else ""
    if recipe.endswith((".yaml", ".yml")):
        raise UserError(f"{where}no such file: {recipe}")
    raise UserError(
        f"{where}no recipe named {shown(recipe)}{nearest(recipe, names())} "
        "(python -m zoo list shows them all)"
    )


def read(path: Path) -> dict[str, Any]:
    """Reads one recipe file, without its base.

    Raises:
        UserError: the file is not YAML, or not a mapping.
    """
    text = read_text(path)
    try:
        content = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise UserError(f"{where}: not YAML: {getattr(error, 'problem', error)}") from None
    except ValueError as error:  # of a number or a date that cannot be
        raise UserError(f"{path}: not YAML: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: a recipe is a mapping of model, data and trainer")
    _check(content, str(path))
    recipe: dict[str, Any] = renamed_recipe(content)
    return recipe


def _check(value: Any, source: str, at: str = "") -> None:
    """Refuses what YAML can say and a recipe cannot.

    Raises:
        UserError: a key that is not text, a value that is not JSON's, or a section that is a file's
            name: it would be read, and shown where it is not a recipe.
    """
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise UserError(f"{source}: {at or 'the recipe'} has {shown(key)} as a name")
            _check(item, source, f"{at}.{key[:40]}" if at else key[:40])
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check(item, source, f"{at}[{index}]")
    elif value != value or (isinstance(value, int) and abs(value) >= 2**63):
        raise UserError(
            f"{source}: {at} is {shown(value)}: not a number that torch can compute with"
        )
    elif not isinstance(value, str | int | float | None):
        raise UserError(f"{source}: {at} is {shown(value)}: write it in quotes")
    if at in NOT_IN_A_FILE:
        raise UserError(f"{source}: {at} is an option of the command line, not of a recipe")
    if at in SECTIONS and not isinstance(value, dict) and value is not None:
        raise UserError(f"{source}: {at} is {shown(value)}, expected a mapping: {at}: {{...}}")


def chain(path: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Reads the recipe's files, base first, without the zoo's own keys.

    Raises:
        UserError: as of ``read_chain``.
    """
    return [
        (file, {key: value for key, value in content.items() if key not in OWN_KEYS})
        for file, content in read_chain(path)
    ]


def read_chain(
    path: Path, read_one: Callable[[Path], dict[str, Any]] | None = None
) -> list[tuple[Path, dict[str, Any]]]:
    """Reads the recipe's files as they are, base first.

    Args:
        path: the recipe.
        read_one: ``read`` by default; one that remembers where many recipes have a base in common.

    Raises:
        UserError: a base does not exist, or the bases go round in a circle.
    """
    links: list[tuple[Path, dict[str, Any]]] = []
    seen: set[Path] = set()
    current: Path | None = path
    while current is not None:
        if current.resolve() in seen:
            raise UserError(
                f"{path}: base: the recipes inherit from each other in a circle at {current}"
            )
        seen.add(current.resolve())
        content = (read_one or read)(current)
        links.insert(0, (current, content))
        base = content.get("base")
        if base is not None and not isinstance(base, str):
            raise UserError(f"{current}: base: expected the name of one recipe, got {base!r}")
        current = find(base, mentioned_by=current) if base else None
    return links


def merge(base: dict[str, Any], child: dict[str, Any]) -> dict[str, Any]:
    """Merges ``child`` over ``base``, key by key; a key ending in ``+`` appends to a list."""
    merged = dict(base)
    for key, value in child.items():
        if key.endswith("+"):
            extra = value if isinstance(value, list) else [value]
            merged[key[:-1]] = [*(merged.get(key[:-1]) or []), *extra]
        elif isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def resolve(recipe: str) -> dict[str, Any]:
    """Reads the whole recipe with its bases merged in, by name or by path."""
    merged: dict[str, Any] = {}
    for _, content in chain(find(recipe)):
        merged = merge(merged, content)
    return merged


@dataclass(frozen=True)
class Entry:
    """A line of ``zoo list``.

    A checkpoint may have been trained by another recipe than that of its name (a longer one); what
    was measured of it stands with the recipe that trained it.
    """

    name: str
    trains: str
    data: str
    parameters: int | None
    metric: str | None
    value: float | None
    weights: bool  # whether a checkpoint of this name ships
    trained_by: str | None  # the recipe that trained it

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def entries() -> list[Entry]:
    """Lists every shipped recipe, with what was measured of the weights that it trained."""
    configs = checkpoint_configs()
    measured = {trained_by(config): config for config in configs.values()}
    listed = []
    read_once = cache(read)
    for name in names():
        recipe: dict[str, Any] = {}
        for _, content in read_chain(find(name), read_once):
            recipe = merge(recipe, content)
        about = recipe.get("about") or {}
        config = measured.get(name, {})
        metric = config.get("headline")
        listed.append(
            Entry(
                name=name,
                trains=str(about.get("trains", "")),
                data=str((recipe.get("data") or {}).get("class_path", "")).rsplit(".", 1)[-1],
                parameters=config.get("parameters", about.get("parameters")),
                metric=metric,
                value=config.get("metrics", {}).get(metric),
                weights=name in configs,
                trained_by=trained_by(configs[name]) if name in configs else None,
            )
        )
    return listed


def checkpoint_configs() -> dict[str, dict[str, Any]]:
    """Reads ``config.json`` of every shipped checkpoint, by its name.

    One that is damaged is left out with a warning: the others, and recipes, have no part in it.
    """
    configs = {}
    for file in sorted(shipped_folder("checkpoints").glob(f"*/{CONFIG}")):
        try:
            configs[file.parent.name] = read_config(file.parent)
        except UserError as error:
            warnings.warn(f"left out: {error}", stacklevel=2)
    return configs


def trained_by(config: dict[str, Any]) -> str | None:
    """Returns the recipe that trained a checkpoint, as its ``config.json`` records it."""
    name: str | None = config.get("run", {}).get("recipe")
    return name


def weights_of(name: str) -> str | None:
    """Finds the shipped checkpoint of a recipe: of its name, or trained by it."""
    configs = checkpoint_configs()
    if name in configs:
        return name
    return next((other for other in configs if trained_by(configs[other]) == name), None)


def shipped_weights(name: str) -> str:
    """Finds the shipped checkpoint of a recipe, which must have one.

    Raises:
        UserError: the recipe ships none.
    """
    if (weights := weights_of(name)) is None:
        raise UserError(f"recipe {name!r} ships no weights: give --ckpt_path FILE")
    return weights
