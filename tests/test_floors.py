"""Imports go down only, as CONTRIBUTING.md draws them, in every file of every package."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# From the ground up. What stands on one floor knows nothing of each other.
FLOORS: list[set[str]] = [
    {"errors"},
    {"core"},
    {"registry"},
    {"recipes"},
    {"networks", "diagnostics", "data"},
    {"tasks"},
    {"checkpoints"},
    {"evaluation", "runs"},
    {"cli"},
    {"study"},
    {"commands"},
    {"__main__"},
]
FLOOR = {package: number for number, floor in enumerate(FLOORS) for package in floor}
# The public face, whose names are imported on first use, and what is for users' own tests.
ABOVE_ALL = {"__init__", "testing"}
FILES = sorted((ROOT / "zoo").rglob("*.py"))


def module_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def package_of(module: str) -> str:
    """``networks`` of ``zoo.networks.vit``; ``__init__`` of ``zoo`` itself."""
    return module.split(".")[1] if "." in module else "__init__"


MODULES = {module_of(file): file for file in FILES}


def imported(file: Path) -> Iterator[str]:
    """The modules of the zoo that a file imports, in functions and ``TYPE_CHECKING`` as well."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{file}: a relative import hides where it goes"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] != "zoo":
                continue
            yield name if name in MODULES else name.rpartition(".")[0]


def test_every_package_has_a_floor() -> None:
    packages = {package_of(module) for module in MODULES} - ABOVE_ALL
    assert packages == set(FLOOR)


@pytest.mark.parametrize("module", [m for m in MODULES if package_of(m) not in ABOVE_ALL])
def test_a_file_imports_only_its_own_package_and_lower_floors(module: str) -> None:
    own = package_of(module)
    for name in imported(MODULES[module]):
        other = package_of(name)
        assert other == own or FLOOR.get(other, len(FLOORS)) < FLOOR[own], f"{module} → {name}"


def test_diagnostics_stand_on_core_and_errors_alone() -> None:
    for module, file in MODULES.items():
        if package_of(module) == "diagnostics":
            found = {package_of(name) for name in imported(file)}
            assert found <= {"diagnostics", "core", "errors"}, module


def test_no_files_import_each_other_in_a_circle() -> None:
    graph = {
        module: {name for name in imported(file) if name != module}
        for module, file in MODULES.items()
        if package_of(module) not in ABOVE_ALL
    }
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"a circle: {' → '.join(error.args[1])}")


def test_a_circle_in_a_function_would_be_found(tmp_path: Path) -> None:
    file = tmp_path / "hidden.py"
    file.write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from zoo.tasks.base import Task\n"
        "def f():\n    import zoo.cli.app\n    from zoo import networks\n"
    )
    assert set(imported(file)) == {"zoo.tasks.base", "zoo.cli.app", "zoo.networks"}
