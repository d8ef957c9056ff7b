from __future__ import annotations

import os
from pathlib import Path

import pytest

from zoo.study.table import Table, Worker

COLUMNS = ["name", "value", "note"]


def test_rows_stay_and_a_line_that_was_cut_off_goes(tmp_path: Path) -> None:
    table = Table(tmp_path / "new" / "table.csv", COLUMNS)
    assert table.rows() == []
    table.cut_unfinished()
    table.append({"name": "a", "value": 1, "note": 'two\nlines, "quoted"'})
    table.append({"name": "b", "value": 2.5})
    expected = [
        {"name": "a", "value": "1", "note": 'two lines, "quoted"'},
        {"name": "b", "value": "2.5", "note": ""},
    ]
    assert table.rows() == expected
    with table.file.open("a") as file:
        file.write("c,3")  # where the power failed
    assert table.rows() == expected
    table.cut_unfinished()
    table.append({"name": "d"})
    assert [row["name"] for row in table.rows()] == ["a", "b", "d"]


def test_a_column_that_the_table_lacks_is_refused(tmp_path: Path) -> None:
    table = Table(tmp_path / "table.csv", COLUMNS)
    with pytest.raises(ValueError, match="unknown"):
        table.append({"name": "a", "unknown": 1})
    assert table.rows() == []


def make(job: str) -> dict[str, object]:
    if job == "die":
        os._exit(3)
    if job == "fail":
        raise RuntimeError("on\npurpose")
    while job == "long":
        pass
    return {"outcome": job}


def test_what_a_row_does_to_its_process_is_a_row() -> None:
    with Worker(make, seconds=1, memory=2**36) as worker:
        rows = [worker.row(job) for job in ("well", "fail", "die", "long", "again")]
        pid = worker.process.pid
    assert [row["outcome"] for row in rows] == ["well", "crash", "crash", "too long", "again"]
    assert [row.get("note") for row in rows] == [
        None,
        "RuntimeError: on",
        "the process ended with code 3",
        "over 1 s",
        None,
    ]
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
