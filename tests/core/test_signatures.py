"""What is read from the source of a class is what Python says of the imported class."""

from __future__ import annotations

import ast
import inspect
from importlib import import_module

import pytest

from zoo import networks, registry
from zoo.core.signatures import arguments_of, exported

PATHS = [
    "lightning.pytorch.Trainer",
    *(f"zoo.tasks.{name}" for name in registry.TASKS),
    *(f"zoo.data.{name}" for name in registry.DATA),
    *(f"zoo.networks.{name}" for name in networks.REGISTRY),
    "zoo.networks.vit_small_patch16_224",
]


@pytest.mark.parametrize("path", PATHS)
def test_names_and_defaults_are_those_of_the_class(path: str) -> None:
    module, _, name = path.rpartition(".")
    parameters = inspect.signature(getattr(import_module(module), name)).parameters.values()
    known = [p for p in parameters if p.kind is not p.VAR_KEYWORD]
    found = arguments_of(path)
    assert [argument.name for argument in found] == [p.name for p in known]
    for argument, parameter in zip(found, known, strict=True):
        if parameter.default is parameter.empty:
            assert argument.default is None
        elif isinstance(parameter.default, str | int | float | None):
            assert argument.default is not None
            assert ast.literal_eval(argument.default) == parameter.default


def test_descriptions_are_those_of_the_docstring() -> None:
    described = {argument.name: argument.description for argument in arguments_of(PATHS[0])}
    assert described["max_epochs"].startswith("Stop training once this number of epochs")
    described = {a.name: a.description for a in arguments_of("zoo.tasks.ImageClassifier")}
    assert described["lr"] == "peak learning rate."


def test_what_is_not_found_has_no_arguments() -> None:
    assert arguments_of("no_such_package.Thing") == []
    assert arguments_of("zoo.networks.NoSuchNetwork") == []


def test_what_a_package_exports_is_read() -> None:
    assert exported("zoo.networks") == networks.__all__
    assert exported("no_such_package") == []
