"""The audit, shift and uncertainty of every shipped checkpoint, at small size."""

from __future__ import annotations

import pytest
import torch

from tests.conftest import needs_fashion_mnist
from zoo import checkpoints, proof
from zoo.cli import build
from zoo.data import Digits

CLASSIFIERS = [
    name
    for name in checkpoints.names()
    if checkpoints.read_config(checkpoints.folder_of(name))["task"]["name"] == "ImageClassifier"
]


@needs_fashion_mnist
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_what_the_card_says_of_a_shipped_checkpoint(name) -> None:
    task = checkpoints.load(name)
    stated = checkpoints.read_config(checkpoints.folder_of(name))["proof"]
    _, data = build(name)
    data.prepare_data()
    found = proof.prove(task, data, limit=1000)
    assert found["audit"] == stated["audit"]
    assert found["audit"]["error"] == found["audit"]["warning"] == 0
    shift = found["variance_shift"]
    if shift is not None:
        assert shift["layers"] == stated["variance_shift"]["layers"]
        assert shift["ratio"] == pytest.approx(stated["variance_shift"]["ratio"], abs=0.02)
    assert set(found["uncertainty"]) == set(stated["uncertainty"])
    for way, scores in found["uncertainty"].items():
        of_all = stated["uncertainty"][way]
        error = (of_all["accuracy"] * (1 - of_all["accuracy"]) / 1000) ** 0.5
        assert scores["accuracy"] == pytest.approx(of_all["accuracy"], abs=4 * error)
        assert scores["auroc_ood"] > 0.9


def test_images_are_all_of_a_split_in_order_and_normalised() -> None:
    data = Digits()
    images = proof.Images(data, "test")
    data.setup("test")
    pixels, truth = data.read(train=False)
    assert torch.equal(torch.cat([labels for _, labels in images]), truth)
    normalised = torch.cat([batch for batch, _ in images])
    assert torch.equal(normalised, data.normalise(pixels))
    some = images.pick([3, 300])
    assert {at: image.tolist() for at, image in some.items()} == {
        at: pixels[at].tolist() for at in (3, 300)
    }


@pytest.mark.parametrize("limit", [7, 180, 1000])
def test_a_limit_of_images_holds_across_batches(limit) -> None:
    batches = list(proof.Images(Digits(), "train", limit))
    assert sum(len(labels) for _, labels in batches) == limit
    assert all(len(images) == len(labels) for images, labels in batches)


@needs_fashion_mnist
def test_strangers_take_the_shape_of_the_networks_images() -> None:
    data = Digits()
    data.prepare_data()
    assert proof.strangers("fashion_mnist", data, limit=5).shape == (5, 1, 8, 8)
    assert proof.find_strangers("none", data, 5) is None
    name, images = proof.find_strangers("auto", data, 5)
    assert (name, len(images)) == ("fashion_mnist", 5)
