"""A CSV that grows row by row, and survives being cut off."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any


class Table:
    """Rows in a CSV; one that was written stays, whatever happens to the program.

    Args:
        file: the CSV; it is made with the first row.
        columns: their names.
    """

    def __init__(self, file: Path, columns: list[str]) -> None:
        self.file, self.columns = file, columns

    def mend(self) -> None:
        """Cuts off the last line where a killed program left it unfinished."""
        if self.file.is_file() and (content := self.file.read_bytes())[-1:] != b"\n":
            with self.file.open("r+b") as file:
                file.truncate(content.rfind(b"\n") + 1)

    def rows(self) -> list[dict[str, str]]:
        """All rows so far, finished ones alone."""
        if not self.file.is_file():
            return []
        text = self.file.read_text(encoding="utf-8")
        return list(csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1])))

    def append(self, row: dict[str, Any]) -> None:
        """Adds one row in a single write; columns that it lacks are empty.

        Args:
            row: column → value.

        Raises:
            ValueError: the row has a column that the table has not.
        """
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, restval="", lineterminator="\n")
        if not self.file.is_file() or not self.file.stat().st_size:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            writer.writeheader()
        # A cell is one line, so that a line is a row.
        writer.writerow({key: " ".join(str(value).split()) for key, value in row.items()})
        with self.file.open("a", encoding="utf-8", newline="") as file:
            file.write(text.getvalue())
