"""The audit in the wild as a page."""

from __future__ import annotations

from pathlib import Path


def write_page(folder: Path, tables: dict[str, list[dict[str, str]]]) -> None:
    """Writes in_the_wild.md and in_the_wild.html."""
