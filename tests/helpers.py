"""Callbacks for runs in other processes, given to the real command line."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException


class KillAt(Callback):
    """``kill -9``, or another signal, of this very process before a training step."""

    def __init__(self, step: int, signal: int = int(signal.SIGKILL)) -> None:
        self.step, self.signal = step, signal

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.signal)


class AskToEnd(Callback):
    """SIGTERM to one of several processes, while the others wait for it to exchange gradients."""

    def __init__(self, rank: int, step: int) -> None:
        self.rank, self.step = rank, step

    def on_before_backward(
        self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor
    ) -> None:
        if (trainer.global_rank, trainer.global_step) == (self.rank, self.step):
            time.sleep(1)  # the others are in their backward pass by now
            os.kill(os.getpid(), signal.SIGTERM)


class StopInValidation(Callback):
    """Ends in the validation after a step as Lightning does between its batches on SIGTERM."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.global_step == self.step:
            raise SIGTERMException


class SaveEachRank(Callback):
    """Writes every process's final weights, and the validation accuracy it logged."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        content = {
            "state": pl_module.state_dict(),
            "accuracy": trainer.callback_metrics.get("val/accuracy"),
            "loss": trainer.callback_metrics.get("train/loss"),
            "batches": trainer.num_training_batches,
        }
        torch.save(content, self.folder / f"rank{trainer.global_rank}.pt")
