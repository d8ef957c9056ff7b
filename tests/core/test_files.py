from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from zoo.core import files
from zoo.core.files import sha256, write_json, write_text, written_whole
from zoo.errors import UserError


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


FULL_IN_THEIR_WORDS = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    RuntimeError("safetensors: I/O error: No space left on device (os error 28)"),
]


def fail(path: Path, failure: BaseException) -> None:
    with files.written_whole(path) as partial:
        partial.write_text("half")
        raise failure


@pytest.mark.parametrize("failure", FULL_IN_THEIR_WORDS, ids=["disk", "quota", "safetensors"])
def test_a_full_disk_is_named_and_nothing_stays(tmp_path: Path, failure: Exception) -> None:
    path = tmp_path / "deep" / "file"
    with pytest.raises(UserError, match=r"file was not written: the disk mounted at /\S* is full"):
        fail(path, failure)
    assert list(path.parent.iterdir()) == []


def test_torch_says_nothing_of_space_and_the_disk_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failure = RuntimeError("PytorchStreamWriter failed writing file data/7: file write failed")
    with pytest.raises(RuntimeError, match="PytorchStreamWriter"):
        fail(tmp_path / "last.ckpt", failure)
    usage = shutil.disk_usage(tmp_path)._replace(free=4096)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match="is full"):
        fail(tmp_path / "last.ckpt", failure)


def test_another_failure_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(PermissionError):
        fail(tmp_path / "file", PermissionError(errno.EACCES, "no"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not JSON"),
        (b"\xff", "byte 0 is not UTF-8"),
        (b'{"a": NaN}', "NaN is not a JSON value"),
        (b"[" * 100_000, "nested too deeply"),
        (b"1" * 10_000, "not JSON"),
    ],
)
def test_what_is_no_json_is_reported(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "f.json").write_bytes(content)
    with pytest.raises(UserError, match=message):
        files.read_json(tmp_path / "f.json")


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "/".join(["y" * 200] * 50)])
def test_a_name_that_the_system_refuses_names_nothing(name: str) -> None:
    assert not files.is_file(Path(name))
    assert not files.is_folder(Path(name))


@pytest.mark.skipif(os.uname().sysname != "Linux", reason="renameat2 is Linux's")
def test_two_folders_change_places(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "is").write_text(name)
    assert files.exchange(tmp_path / "one", tmp_path / "other")
    assert (tmp_path / "one" / "is").read_text() == "other"
    assert (tmp_path / "other" / "is").read_text() == "one"
    assert not files.exchange(tmp_path / "one", tmp_path / "nowhere")
