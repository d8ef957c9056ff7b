from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters_context
from lightning.pytorch.loggers import CSVLogger

from zoo import networks
from zoo.data import Digits
from zoo.tasks import ImageClassifier
from zoo.tasks.base import ramp


def small() -> ImageClassifier:
    torch.manual_seed(0)
    return ImageClassifier(
        networks.ResNet(10, 1, block="basic", layers=(1,), width=4, stem="small"), lr=0.05
    )


class StandIn(Digits):
    """Digits that take the place of other data."""

    def describe(self) -> dict:
        return {**super().describe(), "instead_of": "FashionMNIST"}


@pytest.mark.parametrize(("data", "prefix"), [(Digits, ""), (StandIn, "digits/")])
def test_metrics_of_stand_in_data_are_logged_under_their_name(
    data: type[Digits], prefix: str, tmp_path: Path
) -> None:
    trainer = Trainer(
        max_epochs=1,
        limit_train_batches=2,
        limit_val_batches=1,
        accelerator="cpu",
        logger=CSVLogger(tmp_path, name="", version=""),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(small(), datamodule=data())
    with (tmp_path / "metrics.csv").open() as file:
        columns = set(next(csv.reader(file)))
    names = ["lr", "train/accuracy", "train/loss", "val/accuracy", "val/loss"]
    names += ["val/balanced_accuracy", "val/macro_f1"]
    assert columns == {"epoch", "step", *(prefix + name for name in names)}
    assert {prefix + name for name in names} <= set(trainer.callback_metrics)


def test_hparams_of_a_subclass_hold_its_own_arguments_too() -> None:
    class Named(ImageClassifier):
        def __init__(self, network: torch.nn.Module, nickname: str, lr: float = 0.5) -> None:
            super().__init__(network, lr=lr)

    network = networks.LSTM(7, 8)
    task = Named(network, "Hugo")
    assert task.hparams["nickname"] == "Hugo"
    assert task.hparams["lr"] == 0.5
    assert task.hparams["network"] == networks.describe(network)
    assert task.hparams == task.hparams_initial


def test_hparams_under_lightnings_own_command_line_are_the_same() -> None:
    """It hands over what it was given, the network's ``class_path`` and a path to call as well."""
    expected = dict(small().hparams)
    given = {**expected, "network": {"class_path": "zoo.networks.ResNet"}, "_class_path": "x.Y"}
    with _given_hyperparameters_context(given, "lightning.pytorch.cli.instantiate_module"):
        task = small()
    assert dict(task.hparams) == expected
    assert json.loads(json.dumps(expected)) == expected


def test_the_ramp_is_the_same_everywhere() -> None:
    expected = [math.sin(0.37 * step + 1e-4 * step**2) for step in range(6)]
    torch.testing.assert_close(ramp([2, 3]), torch.tensor(expected).view(2, 3))
