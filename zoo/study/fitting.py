"""Small fits within a claim: the curves, and whether it diverged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import nn

from zoo.data.images import LabeledImages
from zoo.data.module import DataModule
from zoo.errors import UserError
from zoo.runs.callbacks import TrainingSample
from zoo.study.progress import quietly
from zoo.tasks.base import Task
from zoo.tasks.image_classifier import ImageClassifier


@dataclass(frozen=True)
class Fitted:
    """What a fit leaves: the trained network in evaluation mode, and a value an epoch by metric."""

    network: nn.Module
    curves: dict[str, list[float]]
    diverged: bool

    def final(self, metric: str) -> float:
        return self.curves[metric][-1]

    def best(self, metric: str) -> float:
        values = self.curves[metric]
        return max(values) if metric.endswith("accuracy") else min(values)


class _Recorder(Callback):
    def __init__(self) -> None:
        self.curves: dict[str, list[float]] = {}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for name, value in trainer.callback_metrics.items():
            if "/" in name:
                self.curves.setdefault(name, []).append(float(value))


def fit(
    network: nn.Module,
    data: LabeledImages,
    *,
    epochs: int,
    seed: int,
    lr: float = 1e-3,
    validate_every: int = 1,
    **options: Any,
) -> Fitted:
    """Trains a classifier at a constant rate, by AdamW without weight decay.

    Args:
        network: what is trained; its weights were drawn by the caller.
        data: its images.
        epochs: over them.
        seed: of the order of images, and of dropout.
        lr: learning rate.
        validate_every: epochs from one validation to the next.
        options: further arguments of the task.
    """
    settings: dict[str, Any] = {"optimizer": "adamw", "weight_decay": 0.0, "warmup": 0.0}
    task = ImageClassifier(network, lr=lr, **{**settings, "schedule": "constant", **options})
    return train(task, data, epochs=epochs, seed=seed, check_val_every_n_epoch=validate_every)


def train(task: Task, data: DataModule, *, epochs: int, seed: int, **trainer: Any) -> Fitted:
    """Trains any task on one device, and keeps its curves.

    Args:
        task: with its network.
        data: what it is trained on.
        epochs: over them.
        seed: of the order of the data, and of dropout.
        trainer: further arguments of Lightning's trainer.
    """
    seed_everything(seed, verbose=False)
    recorder, diverged = _Recorder(), False
    with quietly():
        runner = Trainer(
            max_epochs=epochs,
            devices=1,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            logger=False,
            num_sanity_val_steps=0,
            callbacks=[TrainingSample(), recorder],
            **trainer,
        )
        try:
            runner.fit(task, datamodule=data)
        except UserError as error:
            if "the training loss is" not in str(error):
                raise
            diverged = True
    return Fitted(task.network.cpu().eval(), recorder.curves, diverged)


def build(seed: int, network: Any, **arguments: Any) -> nn.Module:
    """A network with fresh weights of a seed."""
    torch.manual_seed(seed)
    built: nn.Module = network(**arguments)
    return built
