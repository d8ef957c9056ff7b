"""Help with words that were misspelt, values and counts in a message, and text as HTML."""

from __future__ import annotations

import difflib
import html
import reprlib
from collections.abc import Iterable

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60
_SHORT.maxlevel = 3


def nearest(word: str, choices: Iterable[str]) -> str:
    """Suggests the choice most like ``word``, as ``"; did you mean 'X'?"``; else nothing."""
    if len(word) > 100:  # no name is as long, and comparing would take seconds
        return ""
    close = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def shown(value: object) -> str:
    """Formats a value for a message: its ``repr``, cut short."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # a whole number of more digits than Python prints
        return f"a {type(value).__name__} of many digits"


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Formats a count with its noun: ``1 file``, ``2 files``, ``1,000 files``.

    Args:
        number: how many.
        noun: of one.
        plural: of none and of several, where it is not ``noun`` with an s.
    """
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def first_line(error: BaseException) -> str:
    """Returns the first line of an exception's message, cut short, or its type without one."""
    lines = str(error).strip().splitlines()
    return lines[0].strip()[:200] if lines else type(error).__name__


def inline_html(text: str) -> str:
    """Escapes a paragraph; `code`, **bold** and [links](file) become tags."""
    pieces = html.escape(text).split("`")
    text = "".join(f"<code>{p}</code>" if i % 2 else p for i, p in enumerate(pieces))
    pieces = text.split("**")
    text = "".join(f"<b>{p}</b>" if i % 2 else p for i, p in enumerate(pieces))
    while "](" in text:
        before, _, rest = text.partition("](")
        before, _, label = before.rpartition("[")
        target, _, after = rest.partition(")")
        text = f'{before}<a href="{target}">{label}</a>{after}'
    return text
