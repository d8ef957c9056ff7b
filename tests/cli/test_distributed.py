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
from torchvision.io import write_png

import zoo
from zoo.data import Digits, ImageFolder
from zoo.runs.metrics import METRICS_FILE, read_metrics

ROOT = Path(__file__).parents[2]


FIT = [
    *(sys.executable, "-m", "zoo", "fit", "--recipe", "resnet_digits"),
    *("--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp"),
    *("--trainer.max_epochs", "4", "--data.batch_size", "64"),
]


def run(folder: Path, command: list[str]) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ddp")
    each = "--trainer.callbacks+=tests.helpers.SaveEachRank"
    done = run(folder, [*FIT, each, f"--trainer.callbacks.folder={folder}"])
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


@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_fit_that_is_asked_to_end_within_a_step_ends_on_both_and_is_resumed(
    folder: Path, tmp_path: Path, rank: int
) -> None:
    """While one process has the signal, the other one waits for it to exchange gradients."""
    stop = [
        "--trainer.callbacks+=tests.helpers.AskToEnd",
        f"--trainer.callbacks.rank={rank}",
        "--trainer.callbacks.step=13",
    ]
    done = run(tmp_path, [*FIT, *stop])
    assert done.returncode == 143, done.stderr
    version = tmp_path / "runs/resnet_digits/version_0"
    assert torch.load(version / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 14
    assert "stopped: saved at step 14" in done.stdout
    done = run(tmp_path, [*FIT, "--ckpt_path", "last"])
    assert done.returncode == 0, done.stderr
    whole = folder / "runs/resnet_digits/version_0"
    rows, expected = (read_metrics(each / METRICS_FILE) for each in (version, whole))
    assert len(rows) == len(expected) == 9
    for row, other in zip(rows, expected, strict=True):
        within = row["epoch"] == 1 and "train/loss" in row  # its sums are added in another order
        assert row == (pytest.approx(other, rel=1e-6) if within else other)


def test_a_folder_of_images_is_validated_exactly_on_two_processes(tmp_path: Path) -> None:
    """Of nine validation images one process sees five and the other four, none twice."""
    root = tmp_path / "images"
    generator = torch.Generator().manual_seed(0)
    for part, count in (("train", 8), ("val", 3)):
        for label in "abc":
            (root / part / label).mkdir(parents=True)
            for index in range(count):
                pixels = torch.randint(256, (3, 40, 40), generator=generator, dtype=torch.uint8)
                write_png(pixels, str(root / part / label / f"{index}.png"))
    (tmp_path / "mine.yaml").write_text(
        f"""
model:
  class_path: zoo.tasks.ImageClassifier
  init_args:
    network:
      class_path: zoo.networks.ResNet
      init_args: {{num_classes: 3, layers: [1], width: 4, stem: small}}
data:
  class_path: zoo.data.ImageFolder
  init_args: {{folder: {root}, image_size: 32, batch_size: 4, workers: 0}}
trainer: {{max_epochs: 1}}
"""
    )
    command = [
        *(sys.executable, "-m", "zoo", "fit", "--recipe", "mine.yaml"),
        *("--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp"),
    ]
    done = run(tmp_path, command)
    assert done.returncode == 0, done.stderr
    version = tmp_path / "runs/mine/version_0"
    with (version / "metrics.csv").open() as file:
        (validated,) = [row for row in csv.DictReader(file) if row["val/loss"]]
    trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False)
    module = ImageFolder(str(root), image_size=32, batch_size=4, workers=0)
    (result,) = trainer.validate(
        zoo.load(version / "checkpoints/last.ckpt"), datamodule=module, verbose=False
    )
    for metric in ("val/loss", "val/accuracy"):
        assert float(validated[metric]) == pytest.approx(result[metric], abs=1e-5)
