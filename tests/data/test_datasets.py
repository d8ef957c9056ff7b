from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

import zoo
from tests.tasks.test_image_classifier import network, trainer
from zoo.data import Images
from zoo.errors import UserError
from zoo.tasks import ImageClassifier


def pair(count: int = 60, seed: int = 0, dtype: torch.dtype = torch.uint8) -> Any:
    """Dark images of class 0 and bright ones of class 1."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    images = torch.randint(0, 128, (count, 1, 8, 8), generator=generator)
    images = images + 128 * labels[:, None, None, None]
    return (images.to(torch.uint8) if dtype == torch.uint8 else images / 255), labels


class Pictures(Dataset[Any]):
    """PIL images, as torchvision's data sets have them."""

    classes = ("dark", "bright")

    def __init__(self, count: int = 60, sizes: tuple[int, ...] = (8,)) -> None:
        self.images, labels = pair(count)
        self.targets, self.sizes = labels.tolist(), sizes

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        side = self.sizes[index % len(self.sizes)]
        image = Image.fromarray(self.images[index, 0].numpy())
        return image.resize((side, side)), self.targets[index]


@pytest.mark.parametrize("kind", ["tensors", "pictures", "floats"])
def test_it_is_trained_tested_and_remembered_without_a_subclass(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(0)
    sources = {
        "tensors": (pair(), pair(20, 1)),
        "pictures": (Pictures(), Pictures(20)),
        "floats": (pair(dtype=torch.float32), pair(20, 1, torch.float32)),
    }
    train, test = sources[kind]
    data = zoo.data.Images(train, test=test, batch_size=8, shift=1)
    task = ImageClassifier(network(num_classes=2), optimizer="muon", lr=0.02, weight_decay=0)
    run = trainer(tmp_path, max_epochs=4)
    run.fit(task, datamodule=data)
    (result,) = run.test(task, datamodule=data, verbose=False)
    assert result["test/accuracy"] == 1.0
    assert data.sizes() == {"train": 54, "val": 6, "test": 20}
    assert task.data_info["classes"] == (["dark", "bright"] if kind == "pictures" else ["0", "1"])
    assert set(task.data_info["sha256"]) == (
        set() if kind == "pictures" else {"train", "validation", "test"}
    )
    images = torch.cat([data.normalize(batch) for batch, _ in data.plain("train")])
    assert abs(images.mean()) < 1e-4
    assert abs(images.std() - 1) < 1e-3
    assert data.network_arguments() == {"num_classes": 2, "in_channels": 1, "image_size": 8}


def test_splits_are_those_given_and_share_nothing() -> None:
    data = Images(pair(40), val=pair(10, 1), test=pair(6, 2))
    assert data.sizes() == {"train": 40, "val": 10, "test": 6}
    carved = Images(pair(40), validation=0.25)
    assert carved.sizes() == {"train": 30, "val": 10, "test": 0}
    assert not carved.has_test
    parts = [carved._sets[split].indices for split in ("train", "validation")]
    assert sorted(parts[0] + parts[1]) == list(range(40))
    torch.manual_seed(7)
    assert Images(pair(40), validation=0.25)._sets["train"].indices == parts[0]
    with pytest.raises(UserError, match="has no test images: give test="):
        carved.test_dataloader()


@pytest.mark.parametrize("source", [pair, Pictures])
def test_folds_hold_each_training_image_out_once(source: Any) -> None:
    held_out = []
    for fold in range(4):
        data = Images(source(30), folds=4, fold=fold)
        assert sum(data.sizes().values()) == 30
        splits = [set(data._sets[split].indices) for split in ("train", "validation")]
        assert not splits[0] & splits[1]
        held_out += splits[1]
    assert sorted(held_out) == list(range(30))
    with pytest.raises(UserError, match="folds is 1"):
        Images(source(30), folds=1, fold=0)
    with pytest.raises(UserError, match="give folds or val"):
        Images(source(30), val=source(10), folds=4, fold=0)
    with pytest.raises(UserError, match="there is no validation image"):
        Images(source(3), folds=4, fold=3)


@pytest.mark.parametrize("kind", ["tensors", "pictures"])
def test_balanced_sampling(kind: str) -> None:
    images, labels = pair(60)
    labels[10:] = 1
    pictures = Pictures(60)
    pictures.targets = labels.tolist()
    train = (images, labels) if kind == "tensors" else pictures
    data = Images(train, val=pair(4), sampling_weights="balanced", batch_size=12)
    assert data.class_counts().tolist() == labels.bincount().tolist()
    drawn = torch.cat([labels for _, labels in data.train_dataloader()])
    assert drawn.bincount().tolist() == [30, 30]


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ((torch.zeros(4, 8, 8), torch.zeros(4).long()), r"give \(N, C, H, W\)"),
        ((torch.zeros(4, 1, 8, 8), torch.zeros(3).long()), r"labels \(3,\)"),
        ((torch.zeros(4, 1, 8, 8), torch.zeros(4)), "whole numbers"),
        ("photos", "give a Dataset"),
        (iter([]), "give a Dataset"),
        ([(torch.zeros(8, 8), 0)] * 4, r"give tensors \(C, H, W\)"),
    ],
)
def test_what_is_no_labeled_images_is_refused(train: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Images(train)


def test_labels_and_sizes_that_do_not_fit_are_refused() -> None:
    images, labels = pair()
    with pytest.raises(UserError, match="labels go from 1 to 2, and there are 2 classes"):
        Images((images, labels + 1), classes=["dark", "bright"]).setup("fit")
    mixed = Images(Pictures(sizes=(8, 9)), mean=[0.5], std=[0.5])
    with pytest.raises(UserError, match=r"\(1, 8, 8\) and \(1, 9, 9\): .*Resize"):
        next(iter(mixed.train_dataloader()))
