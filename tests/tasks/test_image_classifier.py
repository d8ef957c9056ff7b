from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from zoo.core.seeds import step_seed
from zoo.data import Digits
from zoo.errors import UserError
from zoo.networks import ResNet
from zoo.tasks import ImageClassifier


def network(**changes: Any) -> ResNet:
    torch.manual_seed(0)
    arguments: dict[str, Any] = {"num_classes": 10, "in_channels": 1, "block": "basic"}
    return ResNet(**{**arguments, "layers": (1, 1), "width": 8, "stem": "small", **changes})


def trainer(folder: Path, **settings: Any) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    quiet |= {"enable_checkpointing": False, "accelerator": "cpu", "devices": 1}
    return Trainer(default_root_dir=folder, **{**quiet, "max_epochs": 1, **settings})


def test_it_learns_the_digits_from_python_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    wide = network(layers=(1, 1, 1), width=16)
    task = ImageClassifier(wide, optimizer="muon", lr=0.02, weight_decay=0, ema_decay=0.95)
    run = trainer(tmp_path, max_epochs=12)
    run.fit(task, datamodule=Digits())
    (result,) = run.test(task, datamodule=Digits(), verbose=False)
    assert result["test/accuracy"] > 0.93


def test_metrics_are_means_over_samples_not_over_batches(tmp_path: Path) -> None:
    task = ImageClassifier(network()).eval()
    data = Digits()
    (result,) = trainer(tmp_path).test(task, datamodule=data, verbose=False)
    images, labels = data._test
    logits = task(data.normalize(images))
    assert len(images) % 500 != 0
    expected = (logits.argmax(1) == labels).float().mean().item()
    assert result["test/accuracy"] == pytest.approx(expected, abs=1e-6)
    nll = nn.functional.cross_entropy(logits, labels).item()
    assert result["test/loss"] == pytest.approx(nll, rel=1e-5)


def test_any_network_with_logits_out(tmp_path: Path) -> None:
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    task = ImageClassifier(plain, lr=0.1, weight_decay=0)
    run = trainer(tmp_path, max_epochs=3)
    run.fit(task, datamodule=Digits())
    run.save_checkpoint(tmp_path / "plain.ckpt", weights_only=False)
    with pytest.raises(UserError, match="not the zoo's: pass it"):
        ImageClassifier.load_from_checkpoint(tmp_path / "plain.ckpt")
    twin = ImageClassifier.load_from_checkpoint(
        tmp_path / "plain.ckpt", network=copy.deepcopy(plain)
    )
    assert torch.equal(twin.network[1].weight, plain[1].weight)


def test_a_fit_begins_in_training_mode(tmp_path: Path) -> None:
    task = ImageClassifier(network()).eval()
    before = task.network.bn1.running_mean.clone()
    trainer(tmp_path, max_steps=2).fit(task, datamodule=Digits())
    assert not torch.equal(before, task.network.bn1.running_mean)


@pytest.mark.parametrize(("limit", "batches"), [(1.0, 9), (2, 2)])
def test_renewal_augments_each_batch_anew(tmp_path: Path, limit: int | float, batches: int) -> None:
    """One draw for all would keep one batch's mixture of images for good; no more than an epoch."""
    seeds: list[int] = []

    class Watched(Digits):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            if self.trainer.training:
                seeds.append(step_seed(self.trainer))
            return super().on_after_batch_transfer(batch, dataloader_idx)

    task = ImageClassifier(network(), optimizer="muon", lr=0.05, weight_decay=0, ema_decay=0.9)
    state = torch.initial_seed()
    trainer(tmp_path, max_epochs=1, limit_train_batches=limit).fit(task, datamodule=Watched())
    # Of the epoch, and of the renewals before and after its end, each of which begins with one
    # batch by which it finds what keeps running statistics.
    assert len(seeds) == batches + 2 * (batches + 1)
    assert len(set(seeds)) == 2 * batches  # the two renewals draw alike, and so do their firsts
    assert torch.initial_seed() == state


def test_a_last_batch_of_one_stops_with_advice(tmp_path: Path) -> None:
    # 1,257 training images: 1,256 = 8 · 157 leaves a batch of one.
    task = ImageClassifier(network(layers=(1, 1, 1, 1)))
    with pytest.raises(UserError, match=r"one value per channel.*data\.drop_last"):
        trainer(tmp_path).fit(task, datamodule=Digits(batch_size=157, drop_last=False))


def test_a_loss_that_is_no_number_stops_before_the_weights_change(tmp_path: Path) -> None:
    task = ImageClassifier(network(), lr=0.1)
    images = torch.randn(8, 1, 8, 8)
    poisoned = images.clone()
    poisoned[0, 0, 0, 0] = float("nan")
    data = TensorDataset(torch.cat([images, poisoned]), torch.zeros(16).long())
    with pytest.raises(UserError, match="the training loss is nan at step 1"):
        trainer(tmp_path, limit_val_batches=0).fit(task, DataLoader(data, batch_size=8))
    assert all(torch.isfinite(p).all() for p in task.parameters())


def test_predict_gives_probabilities(tmp_path: Path) -> None:
    task = ImageClassifier(network())
    batches = trainer(tmp_path).predict(task, datamodule=Digits())
    probabilities = torch.cat(batches)
    assert probabilities.shape == (360, 10)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(360))


def test_channels_last_reaches_filters_and_inputs() -> None:
    task = ImageClassifier(network(), channels_last=True)
    assert task.network.layer1[0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
    seen = []
    task.network.layer1[0].conv1.register_forward_pre_hook(lambda m, x: seen.append(x[0]))
    task(torch.randn(2, 1, 8, 8))
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


def test_channels_last_is_left_where_onednn_would_write_past_its_workspace() -> None:
    """Without AVX-512 the backward of this network ended in a bus error, or in wrong gradients."""
    narrow = ImageClassifier(network(width=4), channels_last=True, lr=0.1, optimizer="sgd")
    images = torch.randn(128, 1, 28, 28)
    seen: list[torch.Tensor] = []
    narrow.network.layer2.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for _ in range(10):
        narrow(images).square().mean().backward()
    assert not seen[0].is_contiguous(memory_format=torch.channels_last)
    assert all(parameter.grad.isfinite().all() for parameter in narrow.network.parameters())


def test_compiling_keeps_the_names_of_the_weights() -> None:
    compiled = ImageClassifier(network(), compile=True)
    assert set(compiled.state_dict()) == set(ImageClassifier(network()).state_dict())


def test_a_schedule_needs_an_end(tmp_path: Path) -> None:
    endless = trainer(tmp_path, max_epochs=-1)
    with pytest.raises(UserError, match="needs an end"):
        endless.fit(ImageClassifier(network()), datamodule=Digits())
    with pytest.raises(UserError, match="give it in steps"):
        endless.fit(ImageClassifier(network(), schedule="constant"), datamodule=Digits())


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ({"lr": 0}, "model.lr"),
        ({"weight_decay": -1}, "model.weight_decay"),
        ({"warmup": -0.1}, "model.warmup"),
        ({"ema_decay": 1.0}, "model.ema_decay"),
        ({"label_smoothing": 1.0}, "model.label_smoothing"),
    ],
)
def test_bad_arguments_name_their_key(arguments: dict, key: str) -> None:
    with pytest.raises(UserError, match=key):
        ImageClassifier(network(), **arguments)
