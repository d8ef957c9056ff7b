"""Two processes on a CPU, through the real command line."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer

import zoo
from zoo.data import Digits

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ddp")
    command = [
        *(sys.executable, "-m", "zoo", "fit", "--recipe", "resnet_digits"),
        *("--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp"),
        *("--trainer.max_epochs", "4", "--data.batch_size", "64"),
        "--trainer.callbacks+=tests.helpers.SaveEachRank",
        f"--trainer.callbacks.folder={folder}",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_weights_and_statistics_agree_bit_for_bit_between_ranks(folder: Path) -> None:
    first, second = (torch.load(folder / f"rank{rank}.pt") for rank in (0, 1))
    assert first["state"].keys() == second["state"].keys()
    for name, tensor in first["state"].items():
        assert torch.equal(tensor, second["state"][name]), name
    assert first["batches"] == 1257 // 128  # the two share every global batch of 2 · 64


def test_metrics_are_reduced_over_both(folder: Path) -> None:
    first, second = (torch.load(folder / f"rank{rank}.pt") for rank in (0, 1))
    assert first["accuracy"] == second["accuracy"]
    assert first["loss"] == second["loss"]
    # Exactly what one process measures on all the images: none is seen twice or left out.
    model = zoo.load(folder / "runs/resnet_digits/version_0/checkpoints/last.ckpt")
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    (result,) = trainer.validate(model, datamodule=Digits(), verbose=False)
    assert first["accuracy"].item() == pytest.approx(result["val/accuracy"], abs=1e-6)
    (result,) = trainer.test(model, datamodule=Digits(), verbose=False)
    with (folder / "runs/resnet_digits/version_0/metrics.csv").open() as file:
        tested = [row["test/accuracy"] for row in csv.DictReader(file) if row["test/accuracy"]]
    assert float(tested[-1]) == pytest.approx(result["test/accuracy"], abs=1e-6)


def test_only_one_process_leaves_a_folder(folder: Path) -> None:
    assert [path.name for path in (folder / "runs/resnet_digits").iterdir()] == ["version_0"]
