"""What goes on learning, when, and how fast; on networks of other people too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

import zoo
from zoo import networks
from zoo.data import Batches, Digits
from zoo.errors import UserError
from zoo.tasks import ImageClassifier, Task
from zoo.tasks.finetuning import FreezeUntil, prepare


def resnet() -> networks.ResNet:
    return networks.ResNet(10, 1, layers=(1, 1), width=8, stem="small")


def digits(count: int = 200) -> Batches:
    data = Digits()
    images, labels = data.read(train=True)
    return Batches(data.normalize(images[:count]), labels[:count], 50, shuffle=True)


def state_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def changed(module: nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, t in module.state_dict().items() if not torch.equal(t, before[name])}


class Snapshots(Callback):
    """The state after each epoch, of the weights that are trained."""

    def __init__(self) -> None:
        self.states: list[dict[str, torch.Tensor]] = []

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.states.append(state_of(pl_module.network))


@pytest.mark.parametrize("ema", [None, 0.9])
@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
def test_a_frozen_backbone_stays_bit_identical_until_its_epoch(
    optimizer: str, ema: float | None
) -> None:
    torch.manual_seed(0)
    task = ImageClassifier(resnet(), optimizer=optimizer, lr=0.02, ema_decay=ema)
    before, seen = state_of(task.network), Snapshots()
    callbacks = [*prepare(task, "backbone", unfreeze_epoch=1), seen]
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False}
    bars: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False}
    Trainer(max_epochs=2, callbacks=callbacks, **quiet, **bars).fit(task, digits(), digits(50))
    first = {
        name for name, tensor in seen.states[0].items() if not torch.equal(tensor, before[name])
    }
    assert first == {"fc.weight", "fc.bias"}
    assert {"conv1.weight", "bn1.running_mean", "fc.weight"} <= changed(task.network, before)


@pytest.mark.parametrize(
    ("optimizer", "ema", "settings"),
    [("sgd", None, {}), ("muon", 0.9, {}), ("adamw", None, {"accumulate_grad_batches": 2})],
    ids=["sgd", "muon, averaged", "adamw, accumulated"],
)
def test_a_recorded_step_trains_what_was_unfrozen(
    optimizer: str, ema: float | None, settings: dict[str, Any], recorded_on_the_cpu: list[int]
) -> None:
    """A recording of the frozen network's step would leave the backbone as it is for ever."""

    def fit(record: bool) -> tuple[nn.Module, list[dict[str, torch.Tensor]]]:
        torch.manual_seed(0)
        task = ImageClassifier(
            resnet(), optimizer=optimizer, lr=0.01, ema_decay=ema, record=record
        ).double()  # for rounding to stay small
        seen = Snapshots()
        callbacks = [*prepare(task, "backbone", unfreeze_epoch=2), seen]
        images, labels = Digits().read(train=True)
        batches = Batches(Digits().normalize(images[:192]).double(), labels[:192], 24)
        quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False}
        quiet |= {"enable_progress_bar": False, "enable_model_summary": False}
        Trainer(max_epochs=4, callbacks=callbacks, **quiet, **settings).fit(task, batches)
        return task.network, seen.states

    written, epochs = fit(record=False)
    assert not recorded_on_the_cpu
    replayed, recorded_epochs = fit(record=True)
    assert len(recorded_on_the_cpu) >= 6  # of the frozen network and of the whole one
    for expected, found in zip(epochs, recorded_epochs, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)
    assert not torch.equal(epochs[1]["conv1.weight"], epochs[2]["conv1.weight"])
    torch.testing.assert_close(replayed.state_dict(), written.state_dict(), rtol=1e-4, atol=2e-5)


def test_freeze_and_layer_decay_and_lora_are_checked() -> None:
    for settings, message in (
        ({"freeze": "layer9"}, "freeze layer9: no module of the network is named 'layer9'"),
        ({"unfreeze_epoch": 2}, "say what is frozen before it"),
        ({"freeze": "backbone", "unfreeze_epoch": 0}, "unfreeze_epoch is 0"),
        ({"lora_rank": 4}, "ResNet has none except its classifier"),
        ({"lora_rank": 4, "freeze": "backbone"}, "leave out freeze"),
    ):
        with pytest.raises(UserError, match=message):
            prepare(ImageClassifier(resnet()), **settings)
    assert prepare(ImageClassifier(resnet())) == []
    task = ImageClassifier(resnet())
    prepare(task, layer_decay=1.5)
    with pytest.raises(UserError, match=r"layer_decay is 1\.5"):
        task.make_optimizer()
    language = networks.LSTM(vocab_size=7)
    with pytest.raises(UserError, match=r"LSTM has no group_matcher\(\)"):
        zoo.tasks.optim.make_optimizer(language, "adamw", 0.1, 0.0, 0.9, layer_decay=0.5)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_layer_decay_scales_each_layers_rate_and_its_schedule(optimizer: str) -> None:
    task = ImageClassifier(resnet(), optimizer=optimizer, lr=0.1, weight_decay=0.01)
    prepare(task, layer_decay=0.5)
    made = task.make_optimizer()
    names = {parameter: name for name, parameter in task.network.named_parameters()}
    rates = {names[p]: group["lr"] for group in made.param_groups for p in group["params"]}
    # Stem, two blocks, head.
    expected = {"conv1.weight": 1 / 8, "layer1.0.bn1.bias": 1 / 4, "layer2.0.conv1.weight": 1 / 2}
    for name, factor in {**expected, "fc.weight": 1.0, "fc.bias": 1.0}.items():
        assert rates[name] == pytest.approx(0.1 * factor)
    decayed = {
        names[p]: group["weight_decay"] for group in made.param_groups for p in group["params"]
    }
    assert decayed["conv1.weight"] == 0.01
    assert decayed["layer1.0.bn1.bias"] == 0
    schedule = zoo.tasks.schedule.make_schedule(made, "linear", 0.0, 10)
    for _ in range(5):
        made.step()
        schedule.step()
    halved = {names[p]: group["lr"] for group in made.param_groups for p in group["params"]}
    for name, rate in rates.items():
        assert halved[name] == pytest.approx(rate / 2)


def test_finetune_takes_a_network_of_somebody_elses() -> None:
    torch.manual_seed(0)
    network = torchvision.models.shufflenet_v2_x0_5(num_classes=10)
    network.conv1[0] = nn.Conv2d(1, 24, 3, padding=1, bias=False)
    before = state_of(network)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    task = zoo.finetune(network, digits(100), freeze="backbone", max_epochs=1, trainer=quiet)
    assert changed(network, before) == {"fc.weight", "fc.bias"}
    assert not task.training
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert task.predict_step(torch.randn(2, 1, 8, 8), 0).shape == (2, 10)


def used(task: Task, **settings: Any) -> tuple[str, set[float], set[float]]:
    """The optimizer's name, and its rates and decays, in a fit of one epoch at a constant rate."""
    seen: list[torch.optim.Optimizer] = []

    class Spy(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            seen.extend(trainer.optimizers)

    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "callbacks": [Spy()]}
    zoo.finetune(task, digits(50), max_epochs=1, trainer=quiet, **settings)
    (optimizer,) = seen
    groups = optimizer.param_groups
    decays = {group["weight_decay"] for group in groups}
    return type(optimizer).__name__, {group["initial_lr"] for group in groups}, decays


def own_task() -> ImageClassifier:
    torch.manual_seed(0)
    network = networks.ConvNet(10, 1, size="small")
    return ImageClassifier(
        network, optimizer="sgd", lr=0.03, weight_decay=0.2, optimizer_args={"nesterov": False}
    )


def test_finetune_keeps_the_settings_of_a_task() -> None:
    assert used(own_task()) == ("SGD", {0.03}, {0.0, 0.2})


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"lr": 0.004}, ("SGD", {0.004}, {0.0, 0.2})),
        ({"weight_decay": 0.0}, ("SGD", {0.03}, {0.0})),
        ({"optimizer": "adamw", "lr": 0.001}, ("AdamW", {0.001}, {0.0, 0.2})),
    ],
)
def test_finetune_obeys_settings_given_with_a_task(settings: Any, expected: Any) -> None:
    task = own_task()
    assert used(task, **settings) == expected
    assert {name: task.hparams[name] for name in settings} == settings


def test_finetune_refuses_a_rate_that_cannot_be() -> None:
    with pytest.raises(UserError, match="lr is 0"):
        zoo.finetune(own_task(), digits(50), lr=0)
    gan = zoo.load("gan_fmnist")
    with pytest.raises(UserError, match="lr: GAN has optimizers of its own"):
        zoo.finetune(gan, digits(50), lr=0.001)


def test_finetune_merges_lora_into_plain_weights() -> None:
    torch.manual_seed(0)
    network = networks.ViT(10, 1, image_size=8, patch_size=4, embed_dim=16, depth=1, num_heads=2)
    before = state_of(network)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    zoo.finetune(network, digits(100), lora_rank=2, lr=0.01, max_epochs=1, trainer=quiet)
    assert set(network.state_dict()) == set(before)
    moved = changed(network, before)
    assert "blocks.0.attn.qkv.weight" in moved
    assert not {"pos_embed", "blocks.0.norm1.weight", "blocks.0.attn.qkv.bias"} & moved
    update = network.blocks[0].attn.qkv.weight - before["blocks.0.attn.qkv.weight"]
    assert torch.linalg.matrix_rank(update, atol=1e-5) == 2


def test_a_linear_probe_is_the_logistic_regression_of_its_features() -> None:
    data = Digits(image_size=28)
    images, labels = data.read(train=True)
    images = data.normalize(images[:400])
    train = [(images[:200], labels[:200])]
    held_out = [(images[200:], labels[200:400])]
    model = zoo.load("resnet_fmnist", num_classes=10)
    before = state_of(model.network)
    forwards: list[int] = []
    model.network.conv1.register_forward_hook(lambda *_: forwards.append(1))
    probe = zoo.linear_probe(model, train, held_out)
    assert len(forwards) == 2  # each image once
    assert changed(model.network, before) == {"fc.weight", "fc.bias"}
    with torch.no_grad():
        right = (model(images[200:]).argmax(1) == labels[200:400]).float().mean()
    assert float(right) == pytest.approx(probe.accuracy, abs=1e-6)
    assert probe.accuracy > 0.8
    two = zoo.load("resnet_fmnist", num_classes=2)
    even = zoo.linear_probe(
        two, [(images[:200], labels[:200] % 2)], [(images[200:], labels[200:400] % 2)]
    )
    with torch.no_grad():
        right = (two(images[200:]).argmax(1) == labels[200:400] % 2).float().mean()
    assert float(right) == pytest.approx(even.accuracy, abs=1e-6)
    with pytest.raises(UserError, match="label 9 of the data, and the classifier has 2 outputs"):
        zoo.linear_probe(two, train, held_out)


def test_freezing_ends_where_a_resumed_run_is_past_it() -> None:
    task = ImageClassifier(resnet())
    callback = FreezeUntil("backbone", 2)

    class AtEpoch:
        current_epoch = 3

    callback.on_train_start(AtEpoch(), task)  # type: ignore[arg-type]
    assert all(parameter.requires_grad for parameter in task.parameters())
