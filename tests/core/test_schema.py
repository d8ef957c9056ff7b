from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NotRequired, TypedDict

import pytest

from zoo.core.schema import Positive, Sha256, Size, check, check_arguments
from zoo.errors import UserError


class Inner(TypedDict):
    sizes: list[Size]
    kind: NotRequired[Literal["a", "b"]]


class Outer(TypedDict):
    inner: Inner
    rates: NotRequired[dict[str, float | None]]
    digest: NotRequired[Sha256]
    std: NotRequired[list[Positive]]


def doubled(times: int) -> Any:
    value: list[Any] = ["x"]
    for _ in range(times):
        value = [value, value]
    return value


def circle() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    "value",
    [
        {"inner": {"sizes": []}},
        {"inner": {"sizes": [1, 2], "kind": "a"}, "rates": {"x": 1, "y": 0.5, "z": None}},
        {"inner": {"sizes": (3,)}, "further": {"deep": [1, "x", None, True]}},
        {"inner": {"sizes": [1]}, "digest": "0" * 64, "std": [0.5]},
    ],
)
def test_what_fits_passes(value: Any) -> None:
    check(value, Outer, "f")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], r"f: its content is \[\], expected an object"),
        ({}, "f: inner is missing"),
        ({"inner": {}}, r"f: inner\.sizes is missing"),
        ({"inner": {"sizes": [1, True]}}, r"inner\.sizes\[1\] is True, expected a whole number"),
        ({"inner": {"sizes": [0]}}, r"inner\.sizes\[0\] is 0, expected a whole number from 1"),
        ({"inner": {"sizes": [2**63]}}, "expected a whole number"),
        ({"inner": {"sizes": "12"}}, "'12', expected a list"),
        ({"inner": {"sizes": [], "kind": "c"}}, "expected 'a' or 'b'"),
        ({"inner": {"sizes": []}, "rates": {"x": float("nan")}}, "x is nan, expected a finite"),
        ({"inner": {"sizes": []}, "rates": {"x": "1"}}, "x is '1', expected a finite number"),
        ({"inner": {"sizes": []}, "digest": True}, "digest is True, expected text"),
        ({"inner": {"sizes": []}, "digest": "ab"}, "expected a sha256"),
        ({"inner": {"sizes": []}, "std": [0]}, "expected a number above 0"),
        ({"inner": {"sizes": []}, "more": float("inf")}, "more is inf"),
        ({"inner": {"sizes": []}, "more": "\ud800"}, "expected text that can be written"),
        ({"inner": {"sizes": []}, "more": object()}, "expected a JSON value"),
        ({"inner": {"sizes": []}, 3: 4}, "a name in the file is 3, expected text"),
        ({"inner": {"sizes": []}, "more": doubled(60)}, "nested too deeply or too long"),
        ({"inner": {"sizes": []}, "more": doubled(40)}, "nested too deeply or too long"),
        ({"inner": {"sizes": []}, "more": circle()}, "nested too deeply or too long"),
        ({"inner": {"sizes": []}, "more": {"x" * 5000: object()}}, "xxx"),
    ],
)
def test_the_first_difference_is_named(value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        check(value, Outer, "f")
    assert len(str(error.value)) <= 600


def build(name: str, sizes: Sequence[int] = (1,), rate: float | list[float] = 0.0) -> None:
    """Has a signature."""


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({}, "build needs name, which is missing"),
        ({"name": "x", "rat": 1}, "no argument 'rat'; did you mean 'rate'"),
        ({"name": "x", "": 1}, "no argument ''"),
        ({"name": 1}, r"build\(name\) is 1, expected text"),
        ({"name": "x", "sizes": [1, None]}, r"build\(sizes\)\[1\] is None, expected a whole"),
        ({"name": "x", "rate": "no"}, "expected a finite number or a list"),
    ],
)
def test_arguments_are_held_against_the_signature(args: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_arguments(build, args, "f")
    check_arguments(build, {"name": "x", "sizes": [1, 2], "rate": [0.5, 1]}, "f")
