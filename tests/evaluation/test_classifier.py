"""The audit, shift and uncertainty of every shipped checkpoint, at small size."""

from __future__ import annotations

import pytest
import torch

import zoo
from tests.conftest import needs_fashion_mnist
from zoo.checkpoints import store
from zoo.cli.building import from_recipe
from zoo.data import Digits
from zoo.evaluation.classifier import Images, find_ood_images, ood_images, prove

CLASSIFIERS = [
    name
    for name in store.names()
    if store.read_config(store.folder_of(name))["task"]["name"] == "ImageClassifier"
]


@needs_fashion_mnist
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name == "resnet_fmnist" else [pytest.mark.slow])
        for name in CLASSIFIERS
    ],
)
def test_what_the_card_says_of_a_shipped_checkpoint(name) -> None:
    task = zoo.load(name)
    stated = store.read_config(store.folder_of(name))["proof"]
    _, data = from_recipe(name)
    data.prepare_data()
    found = prove(task, data, limit=1000)
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


def test_images_are_all_of_a_split_in_order_and_normalized() -> None:
    data = Digits()
    images = Images(data, "test")
    data.setup("test")
    pixels, truth = data.read(train=False)
    assert torch.equal(torch.cat([labels for _, labels in images]), truth)
    normalized = torch.cat([batch for batch, _ in images])
    assert torch.equal(normalized, data.normalize(pixels))
    some = images.pick([3, 300])
    assert {at: image.tolist() for at, image in some.items()} == {
        at: pixels[at].tolist() for at in (3, 300)
    }


@pytest.mark.parametrize("limit", [7, 180, 1000])
def test_a_limit_of_images_holds_across_batches(limit) -> None:
    batches = list(Images(Digits(), "train", limit))
    assert sum(len(labels) for _, labels in batches) == limit
    assert all(len(images) == len(labels) for images, labels in batches)


@needs_fashion_mnist
def test_out_of_distribution_images_take_the_shape_of_the_networks_images() -> None:
    data = Digits()
    data.prepare_data()
    assert ood_images("fashion_mnist", data, limit=5).shape == (5, 1, 8, 8)
    assert find_ood_images("none", data, 5) is None
    name, images = find_ood_images("auto", data, 5)
    assert (name, len(images)) == ("FashionMNIST", 5)
