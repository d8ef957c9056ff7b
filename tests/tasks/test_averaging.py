from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn

from zoo.data import Digits
from zoo.networks import ResNet
from zoo.tasks import EMA, ImageClassifier
from zoo.tasks.averaging import tensors_of

DECAY = 0.7


class Classifier(ImageClassifier):
    """Whose trained weights are kept after each optimizer step, the first ones of all before."""

    def __init__(self, part: str | None = None) -> None:
        torch.manual_seed(0)
        network = ResNet(
            num_classes=10, in_channels=1, block="basic", layers=(1, 1), width=8, stem="small"
        )
        super().__init__(network, lr=0.05, weight_decay=0)
        self.part = part
        self.trained: list[list[Tensor]] = []
        self.kept: list[list[Tensor]] = []

    def averaged(self) -> nn.Module | None:
        return None if self.part is None else self.network.get_submodule(self.part)

    def configure_callbacks(self) -> list[Callback]:
        task = self

        class Watched(EMA):
            def on_train_batch_end(self, trainer: Trainer, *others: Any) -> None:
                before = self._latest_update_step
                super().on_train_batch_end(trainer, *others)
                assert self._average_model is not None
                if self._latest_update_step > before:
                    task.trained.append([t.detach().clone() for t in tensors_of(task.network)])
                    average = self._average_model.module.network
                    task.kept.append([t.detach().clone() for t in tensors_of(average)])

        return [Watched(DECAY)]


def fit(task: Classifier, folder: Path, **settings: Any) -> Classifier:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    trainer = Trainer(
        default_root_dir=folder,
        enable_checkpointing=False,
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        limit_train_batches=8,
        limit_val_batches=1,
        num_sanity_val_steps=1,
        **quiet,
        **settings,
    )
    trainer.fit(task, datamodule=Digits())
    return task


@pytest.mark.parametrize(("accumulated", "steps"), [(1, 8), (3, 3)])
def test_the_average_follows_its_recurrence(tmp_path: Path, accumulated: int, steps: int) -> None:
    """Once an optimizer step, from the first step's weights on, forgetting faster at first."""
    task = fit(Classifier(), tmp_path, accumulate_grad_batches=accumulated)
    assert len(task.trained) == steps
    expected = task.trained[0]
    for count, (trained, kept) in enumerate(zip(task.trained, task.kept, strict=True)):
        rate = min(DECAY, (1 + count) / (10 + count)) if count else 0.0
        expected = [
            rate * mean + (1 - rate) * value if value.is_floating_point() else value
            for mean, value in zip(expected, trained, strict=True)
        ]
        torch.testing.assert_close(kept, expected)


def test_a_decay_too_slow_for_the_run_is_capped_by_its_length(tmp_path: Path) -> None:
    """The average of a weight that grows by one a step lags it by the average's reach."""

    class Ramp(ImageClassifier):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return -self.network[1].bias.sum()  # Adam steps by its rate where gradients stay alike

    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    nn.init.zeros_(network[1].bias)
    options: dict[str, Any] = {"lr": 1.0, "schedule": "constant", "warmup": 0}
    task = Ramp(network, optimizer="adamw", weight_decay=0, ema_decay=0.9999, **options)
    trainer = Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        max_steps=300,
        max_epochs=-1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(task, datamodule=Digits(batch_size=8))
    # With the decay as given it would be 5.4.
    torch.testing.assert_close(network[1].bias, torch.full((10,), 270.0), atol=2, rtol=0)


def test_what_is_not_averaged_is_as_trained(tmp_path: Path) -> None:
    task = fit(Classifier("fc"), tmp_path)
    names = [name for name, _ in [*task.network.named_parameters(), *task.network.named_buffers()]]
    for trained, kept in zip(task.trained[1:], task.kept[1:], strict=True):
        for name, live, mean in zip(names, trained, kept, strict=True):
            assert torch.equal(live, mean) != name.startswith("fc."), name
