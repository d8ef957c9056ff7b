from __future__ import annotations

import json
from pathlib import Path

import pytest

from zoo.core.files import sha256, write_json, write_text, written_whole


def test_a_file_is_there_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    with written_whole(path) as partial:
        partial.write_text("half")
        assert not path.exists()
    assert path.read_text() == "half"
    assert [file.name for file in path.parent.iterdir()] == ["file.txt"]


@pytest.mark.parametrize("failure", [OSError("no space left"), KeyboardInterrupt()])
def test_what_fails_half_way_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, failure: BaseException
) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")

    def fail() -> None:
        with written_whole(path) as partial:
            partial.write_text("new, but not all of it")
            raise failure

    with pytest.raises(type(failure)):
        fail()
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["file.txt"]


def test_json_keeps_its_letters_and_the_checksum_is_that_of_the_bytes(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"é": [1, 2.5]})
    assert json.loads((tmp_path / "x.json").read_bytes().decode()) == {"é": [1, 2.5]}
    assert "é" in (tmp_path / "x.json").read_text(encoding="utf-8")
    (tmp_path / "abc").write_bytes(b"abc")
    # FIPS 180-2, appendix B.1
    assert sha256(tmp_path / "abc") == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )
