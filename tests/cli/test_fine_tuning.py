"""``--init_from`` and what goes with it, on the real command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml

import zoo
from tests.photos import CLASSES, write_photos
from zoo.checkpoints.source import read_source

FEW = ("--trainer.limit_train_batches", "2", "--trainer.max_epochs", "1")
QUICK = (*FEW, "--trainer.limit_val_batches", "1", "--test_after_fit", "false")


def test_the_network_and_the_head_follow_weights_and_data(zoo_cli, monkeypatch) -> None:
    read: list[str] = []

    def counted(source: str) -> Any:
        read.append(source)
        return read_source(source)

    monkeypatch.setattr("zoo.cli.pretrained.read_source", counted)
    result = zoo_cli("fit", "--recipe", "finetune_digits", "--freeze", "backbone", *QUICK)
    assert result.code == 0, result.err
    assert read == ["resnet_fmnist"]  # though the command line is parsed more than once
    assert "  fc.weight, fc.bias                  new     the 10 classes are others\n" in result.out
    run = Path("runs/finetune_digits/version_0")
    config = yaml.safe_load((run / "config.yaml").read_text())
    network = config["model"]["init_args"]["network"]
    assert network["class_path"].endswith("ResNet")
    assert (network["init_args"]["width"], network["init_args"]["in_channels"]) == (32, 1)
    # The frozen backbone is that of the weights, buffers and all; a run's folder is a name for it.
    tuned, shipped = zoo.load(run).network.state_dict(), zoo.load("resnet_fmnist").network
    for name, tensor in shipped.state_dict().items():
        assert torch.equal(tensor, tuned[name]) == (not name.startswith("fc.")), name

    # The same weights by every name that test takes; none of them names the network.
    metrics = []
    for weights in (("--ckpt_path", "last"), ("--weights", str(run.parent))):
        tested = zoo_cli("test", "--recipe", "finetune_digits", *weights)
        assert tested.code == 0, tested.err
        metrics.append([line for line in tested.out.splitlines() if "test/" in line])
    tested = zoo_cli("test", "--weights", str(run))  # on the data that its recipe names
    assert tested.code == 0, tested.err
    metrics.append([line for line in tested.out.splitlines() if "test/" in line])
    assert metrics[0] == metrics[1] == metrics[2]
    assert len(metrics[0]) >= 2

    # What goes on needs neither the network nor the weights it began from.
    on = ("fit", "--recipe", "finetune_digits", "--ckpt_path", "last", "--freeze", "backbone")
    result = zoo_cli(*on, *QUICK[:2], "--trainer.max_epochs", "2", "--test_after_fit", "false")
    assert result.code == 0, result.err
    assert "weights of" not in result.out
    assert torch.equal(zoo.load(run).network.bn1.running_mean, shipped.bn1.running_mean)


def test_lora_is_resumed_tested_and_loaded_as_plain_weights(zoo_cli) -> None:
    fit = ("fit", "--recipe", "vit_digits", "--lora_rank", "2")
    result = zoo_cli(*fit, *QUICK)
    assert result.code == 0, result.err
    more = zoo_cli(*fit, *QUICK[:2], "--trainer.max_epochs", "2", "--ckpt_path", "last")
    assert more.code == 0, more.err
    file = Path("runs/vit_digits/version_0/checkpoints/last.ckpt")
    names = torch.load(file, weights_only=True)["state_dict"]
    assert any("lora_A" in name for name in names)
    plain = read_source(file).state
    assert set(plain) == set(zoo.load(file).network.state_dict())
    accuracy = json.loads(Path("runs/vit_digits/version_0/run.json").read_text())["metrics"]
    for weights in ("--ckpt_path", "--weights"):
        tested = zoo_cli("test", "--recipe", "vit_digits", weights, str(file))
        assert tested.code == 0, tested.err
        assert f"{accuracy['test/accuracy']:.2%}" in tested.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--init_from", "resnet_fmnits"), "no checkpoint named 'resnet_fmnits'; did you mean"),
        (
            ("--init_from", "vit_fmnist"),
            "weights do not fit the network: 'conv1.weight' is missing",
        ),
        (("--freeze", "layer7"), "freeze layer7: no module of the network is named 'layer7'"),
        (("--lora_rank", "4"), "ResNet has none except its classifier"),
        (("--layer_decay", "2"), "layer_decay is 2.0: it must be above 0 and at most 1"),
        (("--unfreeze_epoch", "1"), "say what is frozen before it"),
        (("--weights", "resnet_fmnist"), "give --init_from resnet_fmnist to start from them"),
        (("--ckpt_path", "resnet_fmnist"), "To start from them, give --init_from resnet_fmnist"),
    ],
)
def test_what_cannot_be_started_from_is_one_line(zoo_cli, arguments, message) -> None:
    result = zoo_cli("fit", "--recipe", "resnet_digits", *arguments)
    assert result.code == 2
    assert message in result.err.strip().splitlines()[-1]
    assert not Path("runs").exists()


def test_weights_that_do_not_say_their_network_need_a_recipe_that_does(zoo_cli) -> None:
    torch.save(zoo.load("resnet_fmnist").network.state_dict(), "mine.pth")
    result = zoo_cli("fit", "--recipe", "finetune_digits", "--init_from", "mine.pth")
    assert result.code == 2
    assert "takes its network from the weights, and mine.pth holds weights alone" in result.err
    both = ("--weights", "resnet_fmnist", "--ckpt_path", "last")
    assert "give one of them" in zoo_cli("test", "--recipe", "resnet_fmnist", *both).err


@pytest.mark.slow
def test_photographs_from_our_weights_and_from_a_local_file_of_timms(zoo_cli) -> None:
    write_photos(Path("photos"), each=40, side=32)
    data = ("--data.folder", "photos", "--data.image_size", "32", "--data.workers", "0")
    fit = ("fit", "--recipe", "finetune_imagefolder", *data, "--init_from", "resnet_fmnist")
    head_alone = ("--freeze", "backbone", "--model.lr", "0.03", "--trainer.max_epochs", "10")
    result = zoo_cli(*fit, *head_alone)
    assert result.code == 0, result.err
    assert "conv1.weight" in result.out
    run = Path("runs/finetune_imagefolder/version_0")
    model, shipped = zoo.load(run), zoo.load("resnet_fmnist").network
    assert model.data_info["classes"] == sorted(CLASSES)
    buffers = dict(model.network.named_buffers())
    assert all(torch.equal(tensor, buffers[name]) for name, tensor in shipped.named_buffers())
    metrics = json.loads((run / "run.json").read_text())["metrics"]
    assert metrics["test/accuracy"] > 0.6  # of six classes
    predicted = zoo_cli("predict", "photos", "--weights", str(run))
    assert predicted.code == 0, predicted.err
    assert "of the 240 whose folder names their class" in predicted.out

    torch.manual_seed(0)
    peer = timm.create_model("test_resnet")
    torch.save(peer.state_dict(), "test_resnet.pth")
    Path("mine.yaml").write_text(
        "base: finetune_imagefolder\ninit_from: test_resnet.pth\nmodel:\n  init_args:\n"
        "    network:\n      class_path: zoo.networks.timm_network\n"
        "      init_args: {name: test_resnet}\n"
    )
    short = ("--trainer.max_epochs", "1", "--freeze", "backbone")
    result = zoo_cli("fit", "--recipe", "mine.yaml", *data, *short)
    assert result.code == 0, result.err
    tuned = zoo.load("runs/mine/version_0").network
    assert tuned.get_classifier().out_features == 6
    for name, tensor in peer.state_dict().items():
        assert torch.equal(tensor, tuned.state_dict()[name]) == (not name.startswith("fc.")), name
