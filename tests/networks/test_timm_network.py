from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

import zoo
from zoo import networks
from zoo.networks import timm_network


def test_a_network_of_timm_is_described_and_built_again() -> None:
    torch.manual_seed(0)
    network = timm_network("resnet18", num_classes=5, in_channels=1, args={"drop_rate": 0.2})
    twin = networks.build(networks.describe(network))
    twin.load_state_dict(network.state_dict())
    images = torch.randn(2, 1, 32, 32)
    assert torch.equal(twin.eval()(images), network.eval()(images))
    assert twin.drop_rate == 0.2


def test_it_trains_in_a_recipe_and_loads_in_one_line(zoo_cli, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        """
model:
  class_path: zoo.tasks.ImageClassifier
  init_args:
    network:
      class_path: zoo.networks.timm_network
      init_args: {name: test_resnet, num_classes: 10, in_channels: 1}
    optimizer: adamw
    lr: 0.001
data: {class_path: zoo.data.Digits, init_args: {image_size: 32}}
trainer: {max_epochs: 1, limit_train_batches: 2}
"""
    )
    result = zoo_cli("fit", "--recipe", "mine.yaml")
    assert result.code == 0, result.err
    model = zoo.load("runs/mine/version_0/checkpoints/last.ckpt")
    assert model(torch.zeros(1, 1, 32, 32)).shape == (1, 10)
    audited = zoo_cli("audit", "--recipe", "mine.yaml")
    assert audited.code == 0, audited.err


def test_pretrained_weights_are_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    create = timm.create_model

    def watch(name: str, pretrained: bool, **given: object) -> torch.nn.Module:
        asked.append((name, pretrained, given))
        return create(name, pretrained=False, **given)

    monkeypatch.setattr(timm, "create_model", watch)
    network = timm_network("test_resnet", pretrained=True, num_classes=4)
    assert asked == [("test_resnet", True, {"num_classes": 4, "in_chans": 3})]
    networks.build(networks.describe(network))  # its weights follow: nothing is downloaded
    assert asked[1][:2] == ("test_resnet", False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet19"}, "did you mean"),
        ({"name": "resnet18", "args": {"drop_rat": 0.1}}, "did you mean 'drop_rate'"),
        ({"name": "resnet18", "in_channels": -1}, "refuses its arguments"),
        ({"name": "resnet18", "args": {"checkpoint_path": "x.bin"}}, "not a size or a rate"),
        ({"name": "resnet18", "args": {"pretrained_cfg": {"url": "u"}}}, "not a size or a rate"),
        ({"name": "resnet18", "args": {"cache_dir": "x"}}, "not a size or a rate"),
        ({"name": "hf-hub:somebody/model"}, "no network named"),
        ({"name": "test_resnet.nosuchtag", "pretrained": True}, "refuses its arguments"),
    ],
)
def test_bad_arguments_are_one_line(arguments: dict, message: str) -> None:
    with pytest.raises(zoo.UserError, match=message):
        timm_network(**arguments)


@pytest.mark.parametrize("failure", [OSError("no route"), ConnectionError("down"), Exception("x")])
def test_a_download_that_fails_is_no_argument(
    monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    def create(*_: object, **__: object) -> torch.nn.Module:
        raise failure

    monkeypatch.setattr(timm, "create_model", create)
    with pytest.raises(zoo.UserError, match="cannot be downloaded"):
        timm_network("resnet18", pretrained=True)


def test_a_description_that_asks_for_weights_is_built_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[bool] = []
    create = timm.create_model
    monkeypatch.setattr(
        timm,
        "create_model",
        lambda name, pretrained, **given: asked.append(pretrained) or create(name, **given),
    )
    networks.build({"name": "timm_network", "args": {"name": "test_resnet", "pretrained": True}})
    assert asked == [False]
