from __future__ import annotations

from zoo.core.text import nearest, shown
from zoo.errors import LENGTH, UserError


def test_a_long_message_keeps_its_beginning_and_its_end() -> None:
    message = str(UserError(f"photos/x.png: {'y' * 5000}: remove it"))
    assert len(message) <= LENGTH
    assert message.startswith("photos/x.png: yyy")
    assert message.endswith("yyy: remove it")


def test_a_message_is_one_line() -> None:
    assert str(UserError("a\n  b\tc")) == "a b c"


def test_any_value_is_shown_short() -> None:
    deep: list[object] = ["x"]
    for _ in range(60):
        deep = [deep, deep]
    circle: list[object] = []
    circle.append(circle)
    for value in (deep, circle, "x" * 10**6, 10**5000, {"a": list(range(10**5))}, b"\xff" * 10**6):
        assert len(shown(value)) <= 120


def test_a_word_of_any_length_is_compared_at_once() -> None:
    assert nearest("x" * 10**6, ["width"]) == ""
    assert nearest("widht", ["width"]) == "; did you mean 'width'?"
