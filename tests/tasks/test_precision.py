"""A task in other precisions, compiled, and measured again after its fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer

import zoo
from zoo.data import Batches, Digits
from zoo.networks import ResNet
from zoo.tasks import ImageClassifier

QUIET = {
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "accelerator": "cpu",
    "max_epochs": 1,
    "limit_train_batches": 3,
}


def network() -> ResNet:
    torch.manual_seed(0)
    return ResNet(10, 1, "basic", (1,), 8, "small")


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("bf16-true", torch.bfloat16), ("16-true", torch.float16), ("64-true", torch.float64)],
)
def test_weights_in_another_precision_train_average_and_predict(precision, dtype) -> None:
    task = ImageClassifier(network(), optimizer="muon", lr=0.02, ema_decay=0.9)
    trainer = Trainer(precision=precision, enable_checkpointing=False, **QUIET)
    trainer.fit(task, datamodule=Digits())
    assert task.network.fc.weight.dtype == dtype
    assert torch.isfinite(trainer.callback_metrics["val/loss"])
    assert task(torch.randn(2, 1, 8, 8)).dtype == dtype


def test_a_task_can_be_measured_after_its_fit_on_a_loader_of_its_own() -> None:
    data = Digits()
    task = ImageClassifier(network(), optimizer="muon", lr=0.02, ema_decay=0.9)
    trainer = Trainer(enable_checkpointing=False, **QUIET)
    trainer.fit(task, datamodule=data)
    fitted = {name: tensor.clone() for name, tensor in task.state_dict().items()}
    expected = float(trainer.callback_metrics["val/loss"])
    images, labels = data._validation
    loader = Batches(data.normalize(images), labels, 50)
    (found,) = trainer.validate(task, loader, verbose=False)
    assert found["val/loss"] == pytest.approx(expected, abs=1e-4)
    assert all(torch.equal(tensor, fitted[name]) for name, tensor in task.state_dict().items())


def test_a_compiled_network_is_saved_under_the_names_of_its_weights(tmp_path: Path) -> None:
    plain = network()
    task = ImageClassifier(torch.compile(plain, backend="eager"), optimizer="muon", lr=0.02)
    assert task.network is plain
    assert task.network._compiled_call_impl is not None
    trainer = Trainer(enable_checkpointing=False, **QUIET)
    trainer.fit(task, datamodule=Digits())
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    again = zoo.load(tmp_path / "x.ckpt").network.state_dict()
    assert list(again) == list(plain.state_dict())
    for name, value in plain.state_dict().items():
        assert torch.equal(again[name], value), name
