"""What a model holds besides its registered parts: in plain objects, closures and globals."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

_INTERNALS = frozenset(vars(nn.Module()))
_PLAIN = frozenset({bool, int, float, complex, str, bytes, type(None)})
_LIBRARIES = frozenset({"torch", "torchvision", "lightning", "pytorch_lightning", "builtins"})
# A data set or a log that a model has at hand is not searched item by item.
_LONGEST, _MOST = 1000, 100_000

Named = tuple[str, Any]


def held_by(*roots: Any) -> Iterator[Named]:
    """Finds every object that modules and functions reach: (path, object), each object once.

    Looks into attributes, those of classes as well, lists, tuples, dicts and sets, closures,
    ``functools.partial``, bound methods, and the globals that code names (of functions among those
    into the ones of the same package). Parameters and buffers are left out, and what PyTorch's and
    Lightning's own objects hold.

    Args:
        roots: modules, functions, or anything else.
    """
    seen: set[int] = set()
    waiting: list[Named] = [("", root) for root in reversed(roots)]
    while waiting and len(seen) < _MOST:
        path, value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        yield path, value
        for name, one in _within(value):
            if type(one) not in _PLAIN:
                waiting.append((f"{path}.{name}" if path and name else path or name, one))


def is_own_object(value: Any) -> bool:
    """Whether a value has attributes and is neither a module, a tensor, a class nor a library's."""
    if issubclass(type(value), type | nn.Module | Tensor) or _of_library(type(value)):
        return False
    return isinstance(_attributes(value), dict)


def _attributes(value: Any) -> Any:
    """An object's ``__dict__`` without asking its own ``__getattr__``, which may do anything."""
    try:
        return object.__getattribute__(value, "__dict__")
    except AttributeError:
        return None


def _within(value: Any) -> list[Named]:
    kind = type(value)  # a proxy may call itself another's class
    if issubclass(kind, Tensor | torch.jit.ScriptModule):
        return []
    if issubclass(kind, nn.Module):
        held = value.__dict__
        own = [(name, one) for name, one in held.items() if name not in _INTERNALS]
        return [*own, *held.get("_modules", {}).items(), *_classes(value)]
    if issubclass(kind, dict):
        return [(str(key), one) for key, one in value.items()] if len(value) <= _LONGEST else []
    if issubclass(kind, list | tuple | set | frozenset):
        return [(str(i), one) for i, one in enumerate(value)] if len(value) <= _LONGEST else []
    if issubclass(kind, FunctionType):
        return _within_function(value)
    if issubclass(kind, MethodType):
        return [("", value.__self__), ("", value.__func__)]
    if issubclass(kind, functools.partial):
        return [("", value.func), ("", value.args), ("", value.keywords)]
    if issubclass(kind, staticmethod | classmethod):
        return [("", value.__func__)]
    if issubclass(kind, type):
        return [] if _of_library(value) else list(vars(value).items())
    if _of_library(kind):
        return []
    return [*(_attributes(value) or {}).items(), *_slots(value), *_classes(value)]


def _within_function(function: FunctionType) -> list[Named]:
    found: list[Named] = []
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            found.append((name, cell.cell_contents))
        except ValueError:  # not filled yet
            continue
    package = package_of(function)
    if package in _LIBRARIES:
        return found
    found += [("", one) for one in function.__defaults__ or ()]
    for name in function.__code__.co_names:
        one = function.__globals__.get(name)
        near = isinstance(one, FunctionType) and package_of(one) == package
        if near or not isinstance(one, FunctionType | type | nn.Module):
            found.append((name, one))
    return found


def package_of(thing: FunctionType | type) -> str:
    """The package that a function or a class is written in."""
    return str(getattr(thing, "__module__", None) or "").partition(".")[0]


def _classes(value: Any) -> list[Named]:
    return [("", one) for one in type(value).__mro__ if not _of_library(one)]


def _of_library(cls: type) -> bool:
    if issubclass(cls, ModuleType):
        return True
    module = str(getattr(cls, "__module__", ""))
    library = module.partition(".")[0] in _LIBRARIES
    return library and not module.startswith("torch.distributions.")


def _slots(value: Any) -> list[Named]:
    names: list[str] = []
    for _, cls in _classes(value):
        slots = vars(cls).get("__slots__", ())
        names += [slots] if isinstance(slots, str) else slots
    found = []
    for name in names:
        try:
            found.append((name, object.__getattribute__(value, name)))
        except AttributeError:  # not filled, or __dict__
            continue
    return found
