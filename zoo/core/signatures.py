"""Arguments of a class or function, read from its source: importing it could take seconds."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from docstring_parser import DocstringStyle, parse


@dataclass(frozen=True)
class Argument:
    """An argument of a constructor, as its source writes it."""

    name: str
    annotation: str  # empty where there is none
    default: str | None  # None for an argument that must be given
    description: str  # of the docstring


def arguments_of(path: str) -> list[Argument]:
    """Reads the arguments of a class's constructor, or of a function.

    Args:
        path: ``package.module.Name``; a package may import the name from elsewhere.

    Returns:
        In the order of the source; nothing where the source is not found.
    """
    module, _, name = path.rpartition(".")
    found = _definition(module, name)
    if found is None:
        return []
    module, node = found
    called: ast.ClassDef | ast.FunctionDef | None = node
    documented: list[ast.ClassDef | ast.FunctionDef] = [node]
    if isinstance(node, ast.ClassDef):
        methods = [one for one in node.body if isinstance(one, ast.FunctionDef)]
        called = next((one for one in methods if one.name == "__init__"), None)
        if called is None:  # the constructor is the base's
            base = ast.unparse(node.bases[0]) if node.bases else ""
            return arguments_of(f"{module}.{base}")
        documented.append(called)
    assert isinstance(called, ast.FunctionDef)
    descriptions = {
        name: " ".join((param.description or "").replace("``", "").split())
        for one in documented
        for param in parse(ast.get_docstring(one) or "", DocstringStyle.GOOGLE).params
        for name in param.arg_name.split(", ")  # which may be described together
    }
    positional, given = [*called.args.posonlyargs, *called.args.args], called.args.defaults
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(given))
    pairs = zip(
        [*positional, *called.args.kwonlyargs],
        [*defaults, *given, *called.args.kw_defaults],
        strict=True,
    )
    return [
        Argument(
            arg.arg,
            ast.unparse(arg.annotation) if arg.annotation else "",
            None if default is None else ast.unparse(default),
            descriptions.get(arg.arg, ""),
        )
        for arg, default in pairs
        if arg.arg != "self"
    ]


def exported(package: str) -> list[str]:
    """Reads ``__all__`` of a package; nothing where the source is not found."""
    tree = _tree(package)
    for node in tree.body if tree is not None else ():
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return []


def _definition(module: str, name: str) -> tuple[str, ast.ClassDef | ast.FunctionDef] | None:
    """Where a name is defined, through the packages that import it from elsewhere."""
    tree = _tree(module)
    for node in tree.body if tree is not None else ():
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return module, node
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _definition(node.module, alias.name)
    return None


@cache
def _tree(module: str) -> ast.Module | None:
    top, *parts = module.split(".")
    try:
        spec = find_spec(top)  # which imports nothing for a name without a dot
    except (ImportError, ValueError):
        return None
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        for file in (
            Path(folder, *parts, "__init__.py"),
            Path(folder, *parts).with_suffix(".py"),
        ):
            if file.is_file():
                return ast.parse(file.read_text(encoding="utf-8"))
    return None
