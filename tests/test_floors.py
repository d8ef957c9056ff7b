"""Imports go down only, as CONTRIBUTING.md draws them: a wing knows the ground and itself."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ZOO = Path(__file__).parent.parent / "zoo"
GROUND = {"errors", "devices", "modes", "seeds", "pictures", "recipes"}
VERSION = {"__version__"}
ABOVE = {
    "networks": {"networks"},
    "diagnostics": {"diagnostics"},
    "data": {"data"},
    "tasks": {"tasks", "networks", "diagnostics", "data"},
}


def rooms(source: str) -> Iterator[str]:
    """The rooms that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == "zoo":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("zoo."):
            yield str(node.module).split(".")[1]
        elif isinstance(node, ast.Import):
            names = (alias.name.split(".") for alias in node.names)
            yield from (name[1] for name in names if name[0] == "zoo" and len(name) > 1)


@pytest.mark.parametrize("wing", ABOVE)
def test_a_wing_imports_the_ground_and_what_lies_below_it(wing: str) -> None:
    found = {
        path.name: set(rooms(path.read_text(encoding="utf-8"))) - GROUND - VERSION - ABOVE[wing]
        for path in (ZOO / wing).glob("*.py")
    }
    assert len(found) > 3
    assert not {name: wrong for name, wrong in found.items() if wrong}


def test_the_ground_imports_nothing_but_itself() -> None:
    for room in GROUND:
        assert set(rooms((ZOO / f"{room}.py").read_text(encoding="utf-8"))) <= GROUND
