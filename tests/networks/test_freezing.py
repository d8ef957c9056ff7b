from __future__ import annotations

import pytest
import timm
import torchvision
from torch import nn

import zoo
from zoo import networks


def test_frozen_statistics_stay_frozen_as_synchronized_ones() -> None:
    network = networks.ResNet(5, 1, layers=(1,), width=4, stem="small")
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(zoo.freeze(network)).train()
    norms = [m for m in synced.modules() if isinstance(m, nn.SyncBatchNorm)]
    assert norms
    assert not any(norm.training for norm in norms)
    assert all(norm.training for norm in zoo.unfreeze(synced).modules())


def test_freeze_finds_the_classifier_of_other_zoos() -> None:
    for model in (torchvision.models.resnet18(), timm.create_model("resnet18")):
        zoo.freeze(model)
        assert {n for n, p in model.named_parameters() if p.requires_grad} == {
            "fc.weight",
            "fc.bias",
        }
        model.train()
        assert not model.bn1.training


def test_freeze_keeps_what_it_is_told_to() -> None:
    model = zoo.freeze(torchvision.models.resnet18(), keep=("layer4", "fc"))
    model.train()
    assert model.layer4[0].bn1.training
    assert not model.layer3[0].bn1.training
    assert model.layer4[0].conv1.weight.requires_grad
    assert not model.layer3[0].conv1.weight.requires_grad


def test_freeze_asks_where_it_cannot_tell() -> None:
    with pytest.raises(ValueError, match="name what stays trainable"):
        zoo.freeze(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match="no module of the network is named 'haed'"):
        zoo.freeze(torchvision.models.resnet18(), keep=("haed",))
