from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from tests.conftest import FASHION, needs_fashion_mnist
from zoo.data import FashionMNIST
from zoo.errors import UserError


@needs_fashion_mnist
def test_55000_5000_10000() -> None:
    data = FashionMNIST()
    data.setup("fit")
    assert data._test is None  # a fit never reads the test set
    data.setup("test")
    assert [len(p[0]) for p in (data._train, data._validation, data._test)] == [55000, 5000, 10000]
    kept = {image.numpy().tobytes() for image in data._train[0][:2000]}
    assert not kept & {image.numpy().tobytes() for image in data._validation[0]}


@needs_fashion_mnist
def test_labels_belong_to_images_and_statistics_to_the_training_set() -> None:
    from torchvision import datasets

    data = FashionMNIST()
    data.prepare_data()
    images, labels = data.read(train=False)
    theirs = datasets.FashionMNIST(os.environ["ZOO_DATA"], train=False)
    assert torch.equal(images[:, 0], theirs.data)
    assert torch.equal(labels, theirs.targets)
    assert list(data.classes) == theirs.classes
    normalized = data.normalize(data.read(train=True)[0])
    assert normalized.mean().abs() < 1e-3
    assert normalized.std() == pytest.approx(1, abs=1e-3)


@needs_fashion_mnist
@pytest.mark.parametrize("damage", ["truncated", "altered"])
@pytest.mark.parametrize("fallback", [None, "digits"])
def test_a_damaged_file_is_named_and_never_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str, fallback: str | None
) -> None:
    raw = tmp_path / "FashionMNIST" / "raw"
    shutil.copytree(FASHION.parent, raw)
    victim = raw / "train-images-idx3-ubyte"
    victim.chmod(0o644)
    content = bytearray(victim.read_bytes())
    if damage == "truncated":
        content = content[:-1000]
    else:
        content[5000] ^= 1
    victim.write_bytes(content)
    monkeypatch.setenv("ZOO_DATA", str(tmp_path))
    with pytest.raises(UserError, match="train-images-idx3-ubyte is truncated or altered"):
        FashionMNIST(fallback=fallback).setup("fit")  # type: ignore[arg-type]


def test_without_data_and_fallback_the_error_tells_how_to_get_them(no_fashion_mnist: Path) -> None:
    with pytest.raises(UserError, match="Set ZOO_DATA to a folder"):
        FashionMNIST().prepare_data()


def test_without_data_the_fallback_is_announced(no_fashion_mnist: Path) -> None:
    data = FashionMNIST(fallback="digits")
    with pytest.warns(UserWarning, match="TRAINING ON DIGITS INSTEAD"):
        data.prepare_data()
    data.setup("fit")
    described = data.describe()
    assert described["name"] == "Digits"
    assert described["instead_of"] == "FashionMNIST"
    assert described["input_shape"] == [1, 28, 28]  # the recipe's network was built for it
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape[1:] == (1, 28, 28)
    assert labels.max() < 10


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ({"batch_size": 0}, "data.batch_size"),
        ({"validation_size": 0}, "data.validation_size"),
        ({"cutout_probability": 1.5}, "data.cutout_probability"),
        ({"shift": -1}, "data.shift"),
    ],
)
def test_bad_arguments_name_their_key(arguments: dict, key: str) -> None:
    with pytest.raises(UserError, match=key):
        FashionMNIST(**arguments)
