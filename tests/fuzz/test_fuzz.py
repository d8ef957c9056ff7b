"""Strangers' files, 3,300 of them: none may run code, crash, hang, or be refused at length."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from tests.fuzz import targets


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    targets.shipped(tmp_path / "origin")
    targets.lightning_files(tmp_path)
    with targets.alarmed():
        yield tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("name", targets.TARGETS)
def test_no_file_does_harm(name: str, work: Path) -> None:
    make, count = targets.TARGETS[name]
    referee = targets.Referee()
    for case, call in make(work, Random(f"{name} 0"), count):
        referee.judge(case, call, work)
    lines = [f"{kind}: {line}" for kind, found in referee.faults.items() for line in found]
    assert not lines, f"{len(lines)} of {referee.cases}:\n" + "\n".join(lines[:50])
    assert referee.refused > count // 8  # else the mutations are harmless


def test_there_are_three_thousand_cases() -> None:
    assert sum(count for _, count in targets.TARGETS.values()) >= 3000
