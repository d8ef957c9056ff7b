from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torchvision import datasets

from zoo.data import CIFAR10, CIFAR100
from zoo.errors import UserError


@pytest.mark.parametrize(("kind", "count"), [(CIFAR10, 200), (CIFAR100, 40)])
def test_images_and_labels_are_torchvisions(cifar_files: Path, kind: type, count: int) -> None:
    data = kind(validation_size=10, batch_size=8)
    data.setup("fit")
    data.setup("test")
    assert len(data._train[0]) + len(data._validation[0]) == count
    images, labels = data.read(train=True)
    theirs = kind().peer(str(cifar_files), train=True)
    assert torch.equal(images, torch.from_numpy(theirs.data).permute(0, 3, 1, 2))
    assert labels.tolist() == theirs.targets
    assert data.classes[-1] == ("truck" if kind is CIFAR10 else "class 99")
    batch, _ = next(iter(data.train_dataloader()))
    assert batch.shape == (8, 3, 32, 32)
    assert len(data.checksums()) == (6 if kind is CIFAR10 else 2)


def test_a_damaged_file_is_named(cifar_files: Path) -> None:
    victim = cifar_files / "cifar-10-batches-py" / "data_batch_3"
    victim.write_bytes(victim.read_bytes()[:-10])
    with pytest.raises(UserError, match="data_batch_3 is truncated or altered"):
        CIFAR10().prepare_data()


def test_without_data_the_error_tells_how_to_get_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(self: datasets.CIFAR10) -> None:
        raise OSError("the network is unreachable")

    monkeypatch.setenv("ZOO_DATA", str(tmp_path))
    monkeypatch.setattr(datasets.CIFAR10, "download", down)
    with pytest.raises(UserError, match=r"Set ZOO_DATA to a folder that holds cifar-10-batches-py"):
        CIFAR10().prepare_data()
