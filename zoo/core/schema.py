"""Holds what a file says against the types that the code expects of it."""

from __future__ import annotations

import contextlib
import inspect
import math
import re
import types
from collections.abc import Callable, Mapping, Sequence
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from zoo.core.text import nearest, shown
from zoo.errors import UserError

DEPTH, VALUES = 60, 200_000  # more than this no file of ours nests or holds
WORDS = {
    str: "text",
    int: "a whole number",
    float: "a finite number",
    bool: "true or false",
    dict: "an object",
    list: "a list",
    type(None): "null",
}

# Forms with a condition, for annotations.
Sha256 = Annotated[str, re.compile(r"[0-9a-f]{64}"), "a sha256, 64 hexadecimal digits"]
Size = Annotated[int, lambda value: value >= 1, "a whole number from 1 up"]
Count = Annotated[int, lambda value: value >= 0, "a whole number from 0 up"]
Positive = Annotated[float, lambda value: value > 0, "a number above 0"]


def check(value: Any, form: Any, source: str, at: str = "") -> None:
    """Compares a value as JSON has them with a type.

    Args:
        value: of any kind, a hostile one too: nothing of it is trusted, not even its depth.
        form: a ``TypedDict``, or as a short one ``{"key": form}`` (further keys may hold any JSON
            value), ``list``, ``dict``, a union, a
            ``Literal``, ``Annotated`` with a condition and its words, or a plain type. ``float``
            takes whole numbers and nothing infinite; ``int`` takes no ``bool``. ``Any``, and what
            else is not JSON's, stands for every JSON value.
        source: the file, for the message.
        at: where in it the value stands.

    Raises:
        UserError: the first difference: where it is, what is there, and what was expected.
    """
    _Check(source).run(value, form, at, 0)


def check_arguments(function: Callable[..., Any], args: Mapping[str, Any], source: str) -> None:
    """Compares the arguments that a file has for a function or a class with its signature.

    Raises:
        UserError: one is unknown, missing, or of another type.
    """
    name = getattr(function, "__name__", str(function))
    parameters = inspect.signature(function).parameters
    hints = get_type_hints(
        function.__init__ if inspect.isclass(function) else function, include_extras=True
    )
    for key, value in args.items():
        if key not in parameters:
            raise UserError(f"{source}: {name} has no argument {shown(key)}{nearest(key, hints)}")
        check(value, hints.get(key, Any), source, f"{name}({key})")
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and key not in args and key != "network":
            raise UserError(f"{source}: {name} needs {key}, which is missing")


class _Check:
    """One comparison, which counts the values it has seen."""

    def __init__(self, source: str) -> None:
        self.source, self.seen = source, 0

    def run(self, value: Any, form: Any, at: str, depth: int) -> None:
        self.seen += 1
        if depth > DEPTH or self.seen > VALUES:
            raise UserError(
                f"{self.source}: {at or 'its content'} is nested too deeply or too long"
            )
        if get_origin(form) is NotRequired:
            (form,) = get_args(form)
        origin = get_origin(form)
        if is_typeddict(form) or isinstance(form, dict):
            self._mapping(value, form, at, depth)
        elif origin is Annotated:
            inner, condition, words = get_args(form)
            self.run(value, inner, at, depth)
            fits = condition.fullmatch if isinstance(condition, re.Pattern) else condition
            if not fits(value):
                self._refuse(value, at, words)
        elif origin in (Union, types.UnionType):
            self._union(value, get_args(form), at, depth)
        elif origin is Literal:
            # By type as well: True is 1 to Python, and not to JSON.
            if not any(type(one) is type(value) and one == value for one in get_args(form)):
                self._refuse(value, at, " or ".join(repr(one) for one in get_args(form)))
        elif _is_list(form, origin):
            self._list(value, form, at, depth)
        elif form is dict or origin in (dict, Mapping):
            _, inner = get_args(form) or (str, Any)
            self._is(isinstance(value, dict), value, at, dict)
            for key, item in value.items():
                self.run(key, str, f"a name in {at or 'the file'}", depth + 1)
                self.run(item, inner, self._below(at, key), depth + 1)
        elif form in (str, int, float, bool, type(None)):
            self._plain(value, form, at)
        else:
            self._json(value, at, depth)

    def _mapping(self, value: Any, form: Any, at: str, depth: int) -> None:
        self._is(isinstance(value, dict), value, at, dict)
        short = isinstance(form, dict)
        hints = form if short else get_type_hints(form, include_extras=True)
        for key, hint in hints.items():
            needed = short or (form.__total__ and get_origin(hint) is not NotRequired)
            if needed and key not in value:
                raise UserError(f"{self.source}: {self._below(at, key)} is missing")
        for key, item in value.items():
            self.run(key, str, f"a name in {at or 'the file'}", depth + 1)
            self.run(item, hints.get(key, Any), self._below(at, key), depth + 1)

    def _union(self, value: Any, forms: Sequence[Any], at: str, depth: int) -> None:
        if len(forms) == 2 and type(None) in forms and value is not None:
            forms = [form for form in forms if form is not type(None)]
        if len(forms) == 1:
            self.run(value, forms[0], at, depth)  # says what is wrong within it
            return
        for form in forms:
            with contextlib.suppress(UserError):
                self.run(value, form, at, depth)
                return
        self._refuse(value, at, " or ".join(WORDS.get(_kind(form), str(form)) for form in forms))

    def _list(self, value: Any, form: Any, at: str, depth: int) -> None:
        self._is(isinstance(value, list | tuple), value, at, list)
        inner = [one for one in get_args(form) if one is not ...] or [Any]
        if get_origin(form) is tuple and ... not in get_args(form) and len(inner) > 1:
            if len(value) != len(inner):
                self._refuse(value, at, f"a list of {len(inner)}")
        else:
            inner = inner[:1] * len(value)
        for index, (item, one) in enumerate(zip(value, inner, strict=True)):
            self.run(item, one, f"{at}[{index}]", depth + 1)

    def _plain(self, value: Any, form: Any, at: str) -> None:
        if form is float:
            fits = (type(value) is float and math.isfinite(value)) or _is_int(value)
        elif form is int:
            fits = _is_int(value)
        else:
            fits = type(value) is form
        self._is(fits, value, at, form)
        if form is str and any("\ud800" <= letter <= "\udfff" for letter in value):
            self._refuse(value, at, "text that can be written as UTF-8")

    def _json(self, value: Any, at: str, depth: int) -> None:
        if isinstance(value, dict):
            self.run(value, dict[str, Any], at, depth)
        elif isinstance(value, list | tuple):
            self.run(value, list[Any], at, depth)
        elif type(value) in WORDS:
            self._plain(value, type(value), at)
        else:
            self._refuse(value, at, "a JSON value")

    def _below(self, at: str, key: str) -> str:
        key = key if re.fullmatch(r"[\w-]{1,40}", key) else shown(key)
        return f"{at}.{key}" if at else key

    def _is(self, fits: bool, value: Any, at: str, form: Any) -> None:
        if not fits:
            self._refuse(value, at, WORDS[form])

    def _refuse(self, value: Any, at: str, expected: str) -> None:
        raise UserError(
            f"{self.source}: {at or 'its content'} is {shown(value)}, expected {expected}"
        )


def _is_int(value: Any) -> bool:
    return type(value) is int and abs(value) < 2**63  # what torch can hold


def _is_list(form: Any, origin: Any) -> bool:
    return form in (list, tuple) or origin in (list, tuple, Sequence)


def _kind(form: Any) -> Any:
    """The plain type of a form."""
    origin = get_origin(form)
    if is_typeddict(form):
        return dict
    return list if _is_list(form, origin) else origin or form
