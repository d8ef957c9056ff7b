"""Rewrites jsonargparse's messages as one line each, with the nearest known name."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

from zoo import data, networks, registry
from zoo.core.text import nearest


def in_one_line(message: str, parser: Any) -> str:
    """Rewrites a message as one line, with the full key and the nearest known name."""
    text = " ".join(message.split())
    for noise in (
        r'^Parser key "(recipe|config)": ?',
        r"^Validation failed: ?",
        r"- Expected a path but \S+ either not accessible or invalid - ",
    ):
        text = re.sub(noise, "", text)
    text = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text)
    # Of a union's complaints, the first is about the type that was meant.
    union = r"(?:- )?Does not validate against any .*?Errors: - (.+?)(?: - | Given value).*$"
    text = re.sub(union, r"\1", text)
    if "arguments are required" in text:
        return "there is nothing to run: give --recipe NAME (python -m zoo list shows them all)"
    keys = []
    within = r"""(?:Parser key ")?([\w.]+)"?: Problem with given class_path '[\w.]+': ?"""
    while key := re.match(within, text):  # of a class within another, from the outermost
        keys.append(key[1])
        text = text[key.end() :]
    if key := re.match(r'Parser key "([\w.]+)": ?', text):
        text = f"{'.'.join([*keys, key[1]])}: {text[key.end() :]}"
    if choice := re.search(r"Literal\[(.+?)\]\. Got value: (\S+)", text):
        return text + nearest(choice[2], re.findall(r"'([^']+)'", choice[1]))
    for pattern, known in _HINTS:
        if unknown := re.search(pattern, text):
            hint = nearest(unknown[1], known(parser))
            if f"'{unknown[1]}'" not in hint:
                return text + hint
            # A name that exists, of another class; or of the recipe's, which is not read yet.
            before = "" if parser.recipes else "; give --recipe NAME before it"
            return text + (before or "; it is an argument of another class than the recipe's")
    return text


def _options(parser: Any) -> list[str]:
    flags = [flag for action in parser._actions for flag in action.option_strings]
    return [flag[2:].removesuffix("+") for flag in flags if flag.startswith("--")]


def _constructor_arguments(_: Any) -> list[str]:
    """Of every network, task and data module of the zoo: what a nested option may be called."""
    tasks = (entry.task for entry in registry.TASKS.values())
    parts: list[Any] = [*networks.REGISTRY.values(), *map(registry.load, tasks)]
    parts += [part for name in data.__all__ if isinstance(part := getattr(data, name), type)]
    return sorted({name for part in parts for name in inspect.signature(part).parameters})


def _classes(_: Any) -> list[str]:
    return [*registry.TASKS, *data.__all__, *networks.__all__]


# What jsonargparse says of an unknown name, and what it may have been meant to be.
_HINTS: tuple[tuple[str, Callable[[Any], list[str]]], ...] = (
    (r"(?i)unrecognized arguments?: --([\w.+]+)", _options),
    (r"Key ['\"]([\w.+]+)['\"] is not expected", _options),
    (r"does not accept (?:nested )?(?:option|key)s? ['\"]?([\w.+]+)", _options),
    (r"Option '([\w.+]+)' is not accepted", _constructor_arguments),
    (r"module '[\w.]+' has no attribute '(\w+)'", _classes),
)
