from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from zoo.core.files import sha256
from zoo.core.lightning_file import checksum_file, read_checkpoint, write_checksum
from zoo.errors import UserError
from zoo.runs.callbacks import AtomicCheckpointIO

CONTENT = {"state_dict": {"weight": torch.arange(1000.0)}, "global_step": 3}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint(CONTENT, path)
    return path


def test_a_fits_checkpoint_has_its_sha256_beside_it(saved: Path) -> None:
    assert checksum_file(saved).read_text() == f"{sha256(saved)}  last.ckpt\n"
    assert torch.equal(
        read_checkpoint(saved)["state_dict"]["weight"], CONTENT["state_dict"]["weight"]
    )
    assert {path.name for path in saved.parent.iterdir()} == {"last.ckpt", "last.ckpt.sha256"}
    AtomicCheckpointIO().remove_checkpoint(saved)
    assert not list(saved.parent.iterdir())


@pytest.mark.parametrize("place", [0, 40, 500, 1500, 3000, -40, -1])
def test_a_flipped_bit_is_noticed(saved: Path, place: int) -> None:
    content = bytearray(saved.read_bytes())
    content[place] ^= 4
    saved.write_bytes(content)
    with pytest.raises(UserError, match=r"last\.ckpt is truncated or altered"):
        read_checkpoint(saved)


def test_a_flipped_weight_is_noticed_without_the_file_beside_it(saved: Path) -> None:
    checksum_file(saved).unlink()
    content = saved.read_bytes()
    place = content.index(torch.arange(1000.0).numpy().tobytes()) + 2000
    saved.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    with pytest.raises(UserError, match="is altered: the checksum of"):
        read_checkpoint(saved)


def test_a_rewritten_checkpoint_never_stands_beside_a_wrong_sha256(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the checkpoint is renamed, and before its sha256 is written."""

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("zoo.runs.callbacks.write_checksum", killed)
    with pytest.raises(KeyboardInterrupt):
        AtomicCheckpointIO().save_checkpoint({**CONTENT, "global_step": 4}, saved)
    assert read_checkpoint(saved)["global_step"] == 4


def test_compressed_entries_are_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.ckpt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(2**20))
    with pytest.raises(UserError, match="its entries are compressed"):
        read_checkpoint(path)


class Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


def test_nothing_in_a_pickle_runs(tmp_path: Path) -> None:
    path, canary = tmp_path / "x.ckpt", tmp_path / "canary"
    torch.save({"state_dict": {}, "hyper_parameters": Touch(canary)}, path)
    with pytest.raises(UserError, match="nothing of it was run") as refused:
        read_checkpoint(path)
    assert "weights_only" not in str(refused.value)  # no advice to load it all the same
    path.write_bytes(pickle.dumps(Touch(canary)))
    with pytest.raises(UserError, match="not a readable checkpoint"):
        read_checkpoint(path)
    assert not canary.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"state_dict": []}, "state_dict is"),
        ({"state_dict": {"weight": "x"}}, "expected a tensor"),
        ({"hyper_parameters": "x"}, "hyper_parameters is 'x', expected an object"),
        ({"hyper_parameters": {"network": {"name": "ResNet"}}}, "network.args is missing"),
        ({"global_step": -1}, "global_step is -1"),
        ({"task": ["GAN"]}, "task is"),
        ({"data": {"std": [0.0]}}, "expected a number above 0"),
        ({"data": {"mean": [0.5], "input_shape": [3, 8, 8]}}, "1 number for 3 channels"),
    ],
)
def test_another_form_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    torch.save({**CONTENT, **change}, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match=message):
        read_checkpoint(tmp_path / "x.ckpt")


def test_a_file_beside_it_that_is_of_another_is_reported(saved: Path) -> None:
    write_checksum(saved, "0" * 64)
    with pytest.raises(UserError, match=r"last\.ckpt\.sha256 says '000000000000'"):
        read_checkpoint(saved)
