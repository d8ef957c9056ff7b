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


def test_freeze_through_a_stage_follows_the_layers_not_their_names() -> None:
    network = networks.ResNet(5, 1, layers=(1, 2, 1), width=4, stem="small")
    zoo.freeze(network, through="layer2.0").train()
    trained = [name for name, p in network.named_parameters() if p.requires_grad]
    assert {".".join(name.split(".")[:2]) for name in trained} == {
        "layer2.1",
        "layer3.0",
        "fc.weight",
        "fc.bias",
    }
    assert not network.bn1.training
    assert not network.layer2[0].bn2.training
    assert network.layer2[1].bn1.training
    vit = networks.ViT(3, image_size=16, patch_size=4, embed_dim=8, depth=3, num_heads=2)
    zoo.freeze(vit, through="blocks.1")
    frozen = {name.split(".")[0] for name, p in vit.named_parameters() if not p.requires_grad}
    assert frozen == {"cls_token", "pos_embed", "patch_embed", "blocks"}
    assert all(p.requires_grad for p in vit.blocks[2].parameters())


def test_freeze_through_reaches_norms_without_parameters_and_networks_without_groups() -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2, affine=False), nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)
    )
    zoo.freeze(network, through="2").train()
    assert [m.training for m in network] == [True, False, True, True]
    assert [p.requires_grad for p in network.parameters()] == [False] * 4 + [True] * 2
    with pytest.raises(ValueError, match="no module of the network is named 'layer9'"):
        zoo.freeze(networks.resnet18(), through="layer9")
