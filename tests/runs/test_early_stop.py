from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace

import pytest

from zoo.errors import UserError
from zoo.runs.early_stop import early_stop

MODEL = SimpleNamespace(monitor="val/agreement", monitor_mode="max")


@pytest.mark.parametrize(
    ("given", "metric", "patience", "mode"),
    [
        ("val/loss", "val/loss", 3, "min"),
        ("val/loss,7", "val/loss", 7, "min"),
        ("val/macro_f1,0", "val/macro_f1", 0, "max"),
        ("val/balanced_accuracy", "val/balanced_accuracy", 3, "max"),
        ("val/agreement", "val/agreement", 3, "max"),
    ],
)
def test_the_option_is_read(given: str, metric: str, patience: int, mode: str) -> None:
    stop = early_stop(given, MODEL, {})
    assert (stop.monitor, stop.patience, stop.mode) == (metric, patience, mode)
    stand_in = {"name": "Digits", "instead_of": "FashionMNIST"}
    assert early_stop(given, MODEL, stand_in).monitor == f"digits/{metric}"


@pytest.mark.parametrize("given", ["", ",3", "val/loss,", "val/loss,-1", "val/loss,x"])
def test_another_form_is_refused(given: str) -> None:
    with pytest.raises(UserError, match="give METRIC or METRIC,PATIENCE"):
        early_stop(given, MODEL, {})


def test_a_fit_stops_once_the_metric_does_not_improve(zoo_cli) -> None:
    fit = ("fit", "--recipe", "convnet_digits", "--test_after_fit", "false")
    fit += ("--trainer.limit_train_batches", "1", "--trainer.max_epochs", "9")
    # The loss rises with every step of this rate.
    result = zoo_cli(*fit, "--model.lr", "1e-12", "--early_stop", "val/accuracy,2")
    assert result.code == 0, result.err
    with Path("runs/convnet_digits/version_0/metrics.csv").open() as file:
        epochs = [row["epoch"] for row in csv.DictReader(file) if row["val/accuracy"]]
    assert len(epochs) < 9
    result = zoo_cli(*fit, "--early_stop", "val/acuracy")
    assert result.code == 2
    assert "no such metric; did you mean 'val/accuracy'?; this run logs" in result.err
