"""Which run is meant, whose folder a run gets, and what a resumed run may change."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from zoo.cli import run_folder
from zoo.errors import UserError

SHORT = (
    *("fit", "--recipe", "resnet_digits", "--model.network.width", "4", "--test_after_fit"),
    *("false", "--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1"),
)


def make_run(runs: Path, number: int, *, saved: bool, status: str = "finished") -> Path:
    run = runs / f"version_{number}"
    (run / "checkpoints").mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"status": status}))
    if saved:
        (run / "checkpoints" / "last.ckpt").write_bytes(b"weights")
    return run


def test_the_newest_run_is_meant_and_versions_are_numbers(tmp_path: Path) -> None:
    for number in (2, 9, 10):
        make_run(tmp_path, number, saved=True)
    (tmp_path / "version_11").mkdir()  # of a command that only measures
    found = run_folder.find_checkpoint("last", tmp_path, "fit")
    assert found == tmp_path / "version_10/checkpoints/last.ckpt"


def test_a_run_that_died_before_it_saved_is_named_and_no_older_one_goes_on(tmp_path: Path) -> None:
    older = make_run(tmp_path, 0, saved=True)
    make_run(tmp_path, 1, saved=False, status="running")
    with pytest.raises(UserError, match="version_1, ended before it saved") as error:
        run_folder.find_checkpoint("last", tmp_path, "fit")
    assert str(older / "checkpoints/last.ckpt") in str(error.value)
    with pytest.raises(UserError, match="no run found in"):
        run_folder.find_checkpoint("best", tmp_path / "other", "test")


def test_runs_that_begin_at_the_same_moment_have_folders_of_their_own(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        claimed = list(pool.map(lambda _: run_folder.claim(tmp_path / "runs"), range(24)))
    assert sorted(claimed, key=lambda name: int(name[8:])) == [f"version_{n}" for n in range(24)]


def test_going_on_with_other_settings_names_them_and_changes_nothing(zoo_cli) -> None:
    done = zoo_cli(*SHORT, "--trainer.max_epochs", "1")
    assert done.code == 0, done.err
    run = Path("runs/resnet_digits/version_0")
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    for option, value, named in (
        ("--model.lr", "0.5", "model.init_args.lr 0.02 → 0.5"),
        ("--model.weight_decay", "0.3", "model.init_args.weight_decay 0.0 → 0.3"),
        ("--data.batch_size", "32", "data.init_args.batch_size 128 → 32"),
        ("--seed_everything", "7", "seed_everything 0 → 7"),
        ("--trainer.precision", "bf16-mixed", "trainer.precision"),
        ("--trainer.accumulate_grad_batches", "2", "trainer.accumulate_grad_batches 1 → 2"),
        ("--model.optimizer", "adamw", "model.init_args.optimizer 'muon' → 'adamw'"),
    ):
        result = zoo_cli(*SHORT, option, value, "--trainer.max_epochs", "2", "--ckpt_path", "last")
        assert result.code == 2, option
        assert named in result.err
        assert "Traceback" not in result.err
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before


def test_accepted_changes_are_what_the_run_goes_on_with_and_says(zoo_cli) -> None:
    constant = ("--model.schedule", "constant", "--model.warmup", "0")
    assert zoo_cli(*SHORT, *constant, "--trainer.max_epochs", "1").code == 0
    changed = ("--model.lr", "0.5", "--ckpt_path", "last", "--resume_changes", "accept")
    result = zoo_cli(*SHORT, *constant, *changed, "--trainer.max_epochs", "2")
    assert result.code == 0, result.err
    record = json.loads(Path("runs/resnet_digits/version_0/run.json").read_text())
    assert record["changed"] == {"model.init_args.lr": [0.02, 0.5]}
    assert record["metrics"] | {"lr": 0.5} == record["metrics"] | {"lr": _last_lr()}
    other = zoo_cli(
        *(*SHORT, *constant, "--model.optimizer", "adamw", "--trainer.max_epochs", "3"),
        *("--ckpt_path", "last", "--resume_changes", "accept"),
    )
    assert other.code == 2
    assert "start a new run for it" in other.err


def _last_lr() -> float:
    import csv

    with Path("runs/resnet_digits/version_0/metrics.csv").open() as file:
        rates = [float(row["lr"]) for row in csv.DictReader(file) if row["lr"]]
    assert rates[0] == pytest.approx(0.02)
    return rates[-1]


def test_the_command_that_goes_on_replaces_the_checkpoint_it_was_given(tmp_path: Path) -> None:
    assert "start it anew" in run_folder.how_to_go_on(tmp_path, ["--recipe", "x"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--save_every_n_steps", "0"], "--save_every_n_steps is 0: it must be at least 1"),
        (["--trainer.gradient_clip_val", "-1"], "trainer.gradient_clip_val is -1"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(zoo_cli, arguments, message) -> None:
    result = zoo_cli(*SHORT, *arguments)
    assert result.code == 2
    assert message in result.err
    assert not Path("runs").exists()


def test_a_run_that_diverges_keeps_its_metrics_and_curve_and_saves_nothing(zoo_cli) -> None:
    result = zoo_cli(
        *("fit", "--recipe", "resnet_digits", "--model.network.width", "4", "--model.lr", "1e30"),
        *("--trainer.max_epochs", "3", "--model.ema_decay", "null"),
    )
    assert result.code == 2
    assert "finite" in result.err or "loss is" in result.err
    run = Path("runs/resnet_digits/version_0")
    assert json.loads((run / "run.json").read_text())["status"] == "failed"
    assert not list(run.glob("checkpoints/last.ckpt"))
