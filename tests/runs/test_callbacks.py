from __future__ import annotations

from pathlib import Path

import pytest

from zoo.runs.metrics import RunLogger, curves, draw_curves, duration, read_metrics, run_name


def log(logger: RunLogger, steps: range) -> None:
    for step in steps:
        logger.log_metrics({"train/loss": 1.0 / (step + 1), "epoch": step // 2}, step)
    logger.save()


def test_a_fresh_run_starts_a_fresh_file(tmp_path: Path) -> None:
    first = RunLogger(str(tmp_path), "run")
    log(first, range(3))
    second = RunLogger(str(tmp_path), "run")
    log(second, range(2))
    assert [path.name for path in sorted((tmp_path / "run").iterdir())] == [
        "version_0",
        "version_1",
    ]
    assert len(read_metrics(tmp_path / "run/version_0/metrics.csv")) == 3


def test_a_resumed_run_keeps_what_was_logged_before_its_checkpoint(tmp_path: Path) -> None:
    killed = RunLogger(str(tmp_path), "run")
    log(killed, range(6))
    resumed = RunLogger(str(tmp_path), "run", "version_0", resumed_step=4)
    log(resumed, range(4, 7))
    resumed.log_metrics({"test/accuracy": 0.5}, 7)  # a new column
    resumed.save()
    rows = read_metrics(tmp_path / "run/version_0/metrics.csv")
    assert [row["step"] for row in rows] == list(range(8))
    assert rows[-1]["test/accuracy"] == 0.5
    assert "test/accuracy" not in rows[0]


def test_curves_show_training_and_validation(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(
        "epoch,step,train/loss,val/loss,train/accuracy,val/accuracy\n"
        "0,1,2.0,,0.3,\n0,1,,1.9,,0.4\n1,2,1.0,,0.8,\n1,2,,0.9,,0.85\n"
    )
    draw_curves(tmp_path / "metrics.csv", tmp_path / "curves.png", "a title")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.csv", "curves.png"}


def test_a_line_for_every_loss_that_a_run_logged() -> None:
    names = ("train/loss_generator", "train/loss_discriminator", "val/features_loss", "lr")
    rows = [{"epoch": epoch, **dict.fromkeys(names, 0.5)} for epoch in (0, 1)]
    points = [(1, 0.5), (2, 0.5)]
    assert curves(rows) == {
        "loss": {"training discriminator": points, "training generator": points}
    }
    both = curves([{"epoch": 0, "resnet/val/accuracy": 0.9, "resnet/val/loss": 0.3}])
    assert list(both) == ["loss", "accuracy"]
    assert both["accuracy"] == {"validation": [(1, 0.9)]}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (89, "89 s"), (720, "12 min"), (3 * 3600 + 5 * 60, "3 h 05 min")],
)
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_run_is_named_by_recipe_and_version() -> None:
    assert run_name(Path("runs/resnet_fmnist/version_3")) == "resnet_fmnist/version_3"
