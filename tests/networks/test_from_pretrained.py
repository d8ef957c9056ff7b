"""Hugging Face's way of loading reads the shipped folders."""

from __future__ import annotations

import pytest
import torch
from huggingface_hub import ModelCard

import zoo
from zoo import networks
from zoo.checkpoints import store

FOLDER = store.shipped_folder("checkpoints")


@pytest.mark.parametrize("name", store.names())
def test_from_pretrained_gives_the_outputs_of_load(name: str) -> None:
    task = zoo.load(name)
    cls = getattr(networks, type(task.network).__name__)
    network = cls.from_pretrained(str(FOLDER / name)).eval()
    assert network.config == task.network.config
    theirs, ours = network.state_dict(), task.network.state_dict()
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[key], ours[key]) for key in ours)


def test_another_class_is_refused() -> None:
    with pytest.raises(ValueError, match="holds a ResNet, not a ViT"):
        networks.ViT.from_pretrained(str(FOLDER / "resnet_fmnist"))


@pytest.mark.parametrize("name", store.names())
def test_the_hub_reads_the_card(name: str) -> None:
    config = store.read_config(FOLDER / name)
    data = ModelCard.load(FOLDER / name / "README.md").data
    assert data.license == "apache-2.0"
    assert data.library_name == "lightning-zoo"
    assert data.model_name == name
    assert config["network"]["name"].lower() in data.tags
    stated = {each.metric_type: each.metric_value for each in data.eval_results}
    key = {"accuracy": "test/accuracy", "loss": "val/loss", "agreement": "agreement"}
    first = next(metric for metric in ("accuracy", "agreement", "loss") if metric in stated)
    assert stated[first] == round(config["metrics"][key[first]], 4)
