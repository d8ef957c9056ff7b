"""A run that is killed and resumed ends with the weights of one that was not, bit for bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from zoo.runs.metrics import read_metrics

ROOT = Path(__file__).parents[2]
METRICS = ("train/loss", "train/accuracy", "train_eval/loss", "val/loss", "val/accuracy")
FIT = (
    *(sys.executable, "-m", "zoo", "fit", "--recipe", "resnet_digits", "--test_after_fit", "false"),
    *("--model.network.width", "8", "--trainer.max_epochs", "5", "--save_every_n_steps", "4"),
    *("--trainer.accelerator", "cpu"),
)


def run(folder: Path, *arguments: str) -> int:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*FIT, *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


def final(folder: Path) -> dict[str, torch.Tensor]:
    """The final weights and their average, and what was logged of every epoch of training."""
    run = folder / "runs/resnet_digits/version_0"
    content = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    assert content["global_step"] == 45
    logged = {}
    for name in METRICS:
        rows = [row for row in read_metrics(run / "metrics.csv") if name in row]
        assert [row["epoch"] for row in rows] == [0, 1, 2, 3, 4], name
        logged[name] = [row[name] for row in rows]
    return {name: torch.tensor(values) for name, values in logged.items()} | {
        f"{part}.{name}": tensor
        for part in ("state_dict", "current_model_state")
        for name, tensor in content[part].items()
    }


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert run(folder) == 0
    return final(folder)


def test_the_same_seed_gives_the_same_weights(
    uninterrupted: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    assert run(tmp_path) == 0
    again = final(tmp_path)
    assert all(torch.equal(tensor, again[name]) for name, tensor in uninterrupted.items())
    other = tmp_path / "other"
    other.mkdir()
    assert run(other, "--seed_everything", "1") == 0
    assert not torch.equal(
        final(other)["state_dict.network.fc.weight"], again["state_dict.network.fc.weight"]
    )


# An epoch has 9 steps: 32 is in the middle of the fourth, 28 its second step, resumed from the
# save at 28 = 7 · 4 itself; 19 comes right after the end of the second.
@pytest.mark.parametrize(
    "step", [pytest.param(19, marks=pytest.mark.slow), 28, pytest.param(32, marks=pytest.mark.slow)]
)
def test_killed_and_resumed_equals_uninterrupted(
    uninterrupted: dict[str, torch.Tensor], tmp_path: Path, step: int
) -> None:
    kill = ("--trainer.callbacks+=tests.helpers.KillAt", f"--trainer.callbacks.step={step}")
    assert run(tmp_path, *kill) == -signal.SIGKILL
    saved = tmp_path / "runs/resnet_digits/version_0/checkpoints/last.ckpt"
    at_kill = torch.load(saved, weights_only=True)["global_step"]
    assert at_kill in (step, step - 1), "the test means to resume from just before the kill"
    assert run(tmp_path, "--ckpt_path", "last") == 0
    resumed = final(tmp_path)
    different = [n for n, tensor in uninterrupted.items() if not torch.equal(tensor, resumed[n])]
    assert not different


def test_a_fit_that_is_asked_to_end_saves_and_says_how_to_go_on(
    uninterrupted: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    stop = ("--trainer.callbacks+=tests.helpers.KillAt", "--trainer.callbacks.step=14")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*FIT, *stop, "--trainer.callbacks.signal=15"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 143, done.stderr
    saved = tmp_path / "runs/resnet_digits/version_0/checkpoints/last.ckpt"
    assert torch.load(saved, weights_only=True)["global_step"] == 15
    command = done.stdout.strip().splitlines()[-1].split()
    assert command[:4] == ["python", "-m", "zoo", "fit"]
    assert command[-2:] == ["--ckpt_path", "runs/resnet_digits/version_0/checkpoints/last.ckpt"]
    assert run(tmp_path, *command[-2:]) == 0
    resumed = final(tmp_path)
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in uninterrupted.items())


def stop_in_validation(folder: Path, step: int, *arguments: str) -> int:
    """Ends a fit in the validation after a step, and returns the step that was saved."""
    stop = (
        "--trainer.callbacks+=tests.helpers.StopInValidation",
        f"--trainer.callbacks.step={step}",
    )
    done = subprocess.run(
        [*FIT, *arguments, *stop],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 143, done.stderr
    saved = folder / "runs/resnet_digits/version_0/checkpoints/last.ckpt"
    return int(torch.load(saved, weights_only=True)["global_step"])


def test_a_fit_that_is_asked_to_end_in_validation_validates_when_it_is_resumed(
    uninterrupted: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """Lightning would skip the rest; and the module has the averaged weights at that moment."""
    assert stop_in_validation(tmp_path, 18) == 16  # steps 12 and 16 were saved, 18 ends the epoch
    assert run(tmp_path, "--ckpt_path", "last") == 0
    resumed = final(tmp_path)
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in uninterrupted.items())


def test_a_save_that_falls_on_a_validation_within_an_epoch_is_put_off(tmp_path: Path) -> None:
    often = ("--trainer.val_check_interval", "4", "--trainer.max_epochs", "2")
    rows = []
    for name in ("whole", "stopped"):
        (folder := tmp_path / name).mkdir()
        if name == "stopped":
            assert stop_in_validation(folder, 8, *often) == 5  # not 4 and not 8
            assert run(folder, *often, "--ckpt_path", "last") == 0
        else:
            assert run(folder, *often) == 0
        rows.append(read_metrics(folder / "runs/resnet_digits/version_0/metrics.csv"))
    assert [row["step"] for row in rows[0] if "val/loss" in row] == [3, 7, 12, 16]
    assert rows[0] == rows[1]
