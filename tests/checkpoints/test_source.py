"""Weights by every name: files, runs, timm and a Hub that runs on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

import zoo
from tests.hub import serving
from zoo import networks
from zoo.checkpoints.source import read_source
from zoo.checkpoints.transfer import transfer
from zoo.errors import UserError
from zoo.recipes import shipped_folder


def make_resnet() -> networks.ResNet:
    return networks.ResNet(5, 3, layers=(1, 1), width=8, stem="small")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_files_of_timm_and_torchvision_load_without_a_connection(
    tmp_path: Path, suffix: str
) -> None:
    images = torch.randn(1, 3, 64, 64)
    for index, peer in enumerate((timm.create_model("resnet18"), torchvision.models.resnet18())):
        file = tmp_path / f"{index}{suffix}"
        if suffix == ".pth":
            torch.save({"state_dict": peer.state_dict()} if index else peer.state_dict(), file)
        else:
            save_file(peer.state_dict(), file)
        task = zoo.load(file, network=networks.resnet18())
        with torch.no_grad():
            assert torch.equal(task(images), peer.eval()(images))
    with pytest.raises(UserError, match="holds weights alone: give the network"):
        zoo.load(file)


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self):
            return (Path(tmp_path / "touched").touch, ())

    torch.save({"fc.weight": Hostile()}, tmp_path / "hostile.pth")
    (tmp_path / "no.safetensors").write_bytes(b"nothing")
    for name in ("hostile.pth", "no.safetensors"):
        with pytest.raises(UserError, match="is not a file of weights"):
            read_source(tmp_path / name)
    assert not (tmp_path / "touched").exists()
    with pytest.raises(UserError, match="no such file"):
        read_source(tmp_path / "missing.pth")


def test_timm_by_name_is_a_task_that_knows_its_images(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model

    def offline(name: str, pretrained: bool = False, **given: object) -> nn.Module:
        torch.manual_seed(3)
        return create(name, pretrained=False, **given)

    monkeypatch.setattr(timm, "create_model", offline)
    task = zoo.load("timm:test_resnet")
    with torch.no_grad():
        images = torch.randn(1, 3, 64, 64)
        assert torch.equal(task(images), offline("test_resnet").eval()(images))
    assert task.data_info["mean"] == list(timm.get_pretrained_cfg("test_resnet").mean)
    assert len(task.data_info["classes"]) == 1000

    def down(name: str, pretrained: bool = False, **given: object) -> nn.Module:
        if pretrained:
            raise OSError("the network is unreachable")
        return create(name, **given)

    monkeypatch.setattr(timm, "create_model", down)
    with pytest.raises(UserError, match=r"of timm.s test_resnet cannot be downloaded: the network"):
        zoo.load("timm:test_resnet")
    with pytest.raises(UserError, match=r"timm has no network named 'test_resent'; did you mean"):
        zoo.load("timm:test_resent")


# -- the Hub ---------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose files are those of ``hf-hub:user/net``."""
    folder = tmp_path / "net"
    folder.mkdir()
    with serving(folder, monkeypatch):
        yield folder


def test_the_hub_gives_our_form_and_timms(hub: Path) -> None:
    for file in (shipped_folder("checkpoints") / "resnet_fmnist").iterdir():
        (hub / file.name).write_bytes(file.read_bytes())
    images = torch.randn(1, 1, 28, 28)
    with torch.no_grad():
        assert torch.equal(zoo.load("hf-hub:user/net")(images), zoo.load("resnet_fmnist")(images))
    with pytest.raises(UserError, match=r"'hf-hub:user/other' cannot be downloaded: .*check the"):
        zoo.load("hf-hub:user/other")


def test_a_folder_in_timms_form_loads(tmp_path: Path) -> None:
    network = timm.create_model("test_resnet", num_classes=4)
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    config = {
        "architecture": "test_resnet",
        "num_classes": 4,
        "pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2], "crop_pct": 0.9},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    task = zoo.load(tmp_path)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(task(images), network.eval()(images))
    assert task.data_info["mean"] == [0.5, 0.5, 0.5]
    assert task.data_info["crop_pct"] == 0.9


# -- into another network --------------------------------------------------------------------------


def test_head_and_stem_follow_and_the_rest_is_refused_by_name() -> None:
    source = make_resnet()
    other = networks.ResNet(3, 1, layers=(1, 1), width=8, stem="small")
    fresh = other.fc.weight.clone()
    report = transfer(other, source.state_dict(), "x.pth")
    assert torch.equal(other.fc.weight, fresh)
    torch.testing.assert_close(other.conv1.weight, source.conv1.weight.sum(1, keepdim=True))
    assert torch.equal(other.layer2[0].conv1.weight, source.layer2[0].conv1.weight)
    assert [name for name, _, _ in report.changed] == ["conv1.weight", "fc.weight", "fc.bias"]
    assert "3 classes, where there were 5" in str(report)

    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    wide = networks.ResNet(3, 1, layers=(1, 1), width=16, stem="small")
    with pytest.raises(UserError, match=r"conv1.weight is float32 \[16, 1, 3, 3\] there and"):
        transfer(other, wide.state_dict(), "x.pth")
    longer = networks.ResNet(3, 1, layers=(1, 2), width=8, stem="small")
    with pytest.raises(UserError, match=r"'layer2.1.conv1.weight' is missing$"):
        transfer(longer, source.state_dict(), "x.pth")
    with pytest.raises(UserError, match=r"is missing \(its names are others, such as 'a'\)"):
        transfer(other, {"a": torch.zeros(1)}, "x.pth")
    assert all(torch.equal(before[k], v) for k, v in other.state_dict().items())
    longer = networks.ResNet(3, 1, layers=(1, 2), width=8, stem="small")
    text = str(transfer(other, longer.state_dict(), "x.pth"))
    assert "layer2.1.conv1.weight, layer2.1.bn1.weight … layer2.1.bn2.num_batches_tracked" in text
    assert "(12)  not used  the network has none of this name" in text


def test_a_head_for_as_many_other_classes_stays_fresh() -> None:
    other = make_resnet()
    fresh = other.fc.weight.clone()
    report = transfer(other, make_resnet().state_dict(), "x.pth", new_head=True)
    assert torch.equal(other.fc.weight, fresh)
    assert ("fc.weight", "new", "the 5 classes are others") in report.changed


def test_positions_are_resampled_as_timm_does() -> None:
    small, large = (
        networks.ViT(4, 3, image_size=side, patch_size=4, embed_dim=16, depth=1, num_heads=2)
        for side in (16, 24)
    )
    report = transfer(large, small.state_dict(), "x.pth")
    peers = [
        timm.create_model(
            "vit_tiny_patch16_224", img_size=side, patch_size=4, embed_dim=16, depth=1, num_heads=2,
            num_classes=4,
        )
        for side in (16, 24)
    ]  # fmt: skip
    peers[0].load_state_dict(small.state_dict())
    expected = timm.models.vision_transformer.checkpoint_filter_fn(
        peers[0].state_dict(), peers[1], antialias=True
    )
    torch.testing.assert_close(large.pos_embed, expected["pos_embed"])
    assert [name for name, _, _ in report.changed] == ["pos_embed"]


def test_drop_rates_may_be_others_and_are_typed() -> None:
    task = zoo.load("vit_fmnist", drop_rate=0.4, mlp_drop_rate=0.2)
    assert task.network.config["drop_rate"] == 0.4
    assert task.hparams["network"]["args"]["mlp_drop_rate"] == 0.2
    images = torch.randn(2, 1, 28, 28)
    with torch.no_grad():
        assert torch.equal(task(images), zoo.load("vit_fmnist")(images))
    for override, message in (
        ({"drop_rat": 0.4}, "drop_rat"),
        ({"drop_rate": "much"}, "drop_rate"),
        ({"drop_rate": 2.0}, "drop_rate is 2.0"),
        ({"embed_dim": 16, "num_heads": 2}, "weights do not fit the network"),
    ):
        with pytest.raises(UserError, match=message):
            zoo.load("vit_fmnist", **override)
