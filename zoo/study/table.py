"""A CSV that grows row by row, and the process that makes its rows; both survive being cut off."""

from __future__ import annotations

import csv
import io
import multiprocessing
import resource
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from zoo.core.text import first_line

Row = dict[str, Any]


class Table:
    """Rows in a CSV; one that was written stays, whatever happens to the program.

    Args:
        file: the CSV; it is made with the first row.
        columns: their names.
    """

    def __init__(self, file: Path, columns: list[str]) -> None:
        self.file, self.columns = file, columns

    def cut_unfinished(self) -> None:
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


class Worker:
    """A process that makes rows, and may be taken down by one of them.

    Args:
        make: job → row, a function of a module, which another process can import.
        seconds: of processor time that a row may take; a busy machine makes no row too long.
        memory: bytes of address space that the process may take.
    """

    def __init__(self, make: Callable[[Any], Row], seconds: int, memory: int) -> None:
        self.make, self.seconds, self.memory = make, seconds, memory
        self.process: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.join()

    def row(self, job: Any) -> Row:
        """Makes a row; an exception, a limit and the death of the process are rows as well."""
        if self.process is None:
            context = multiprocessing.get_context("spawn")
            self.pipe, theirs = context.Pipe()
            given = theirs, self.make, self.seconds, self.memory
            self.process = context.Process(target=_serve, args=given, daemon=True)
            self.process.start()
            theirs.close()
        self.pipe.send(job)
        try:
            return self.pipe.recv()
        except EOFError:
            self.process.join()
            code, self.process = self.process.exitcode, None
            if code == -signal.SIGXCPU:
                return {"outcome": "too long", "note": f"over {self.seconds} s"}
            return {"outcome": "crash", "note": f"the process ended with code {code}"}


def _serve(pipe: Any, make: Callable[[Any], Row], seconds: int, memory: int) -> None:
    """Makes the rows of the jobs that come through a pipe."""
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits for rows
    warnings.simplefilter("ignore")  # of models that are not ours
    while True:
        try:
            job = pipe.recv()
            begun = time.process_time()
            limit = int(begun) + seconds + 1
            _, hard = resource.getrlimit(resource.RLIMIT_CPU)
            resource.setrlimit(resource.RLIMIT_CPU, (limit, hard))
            try:
                row = make(job)
            except Exception as error:
                row = {"outcome": "crash", "note": says(error)}
            pipe.send(row | {"seconds": f"{time.process_time() - begun:.1f}"})
        except (EOFError, BrokenPipeError):  # the run was stopped
            return


def says(error: BaseException) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {first_line(error)}"[:300]
