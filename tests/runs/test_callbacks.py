from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.nn.functional import cross_entropy

from zoo.data import Digits
from zoo.networks import ConvNet
from zoo.runs.callbacks import TrainingSample
from zoo.runs.metrics import RunLogger, curves, draw_curves, duration, read_metrics, run_name
from zoo.runs.summary import read_gap
from zoo.tasks import ImageClassifier


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


@pytest.mark.parametrize(("training", "validation"), [(0.2, 0.3), (0.3, 0.2)])
def test_a_curves_last_value_stands_on_the_curves_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, training: float, validation: float
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr("zoo.runs.metrics.save_figure", lambda figure, _: drawn.append(figure))
    text = f"epoch,step,train_eval/loss,val/loss\n0,1,0.9,0.9\n1,2,{training},{validation}\n"
    (tmp_path / "metrics.csv").write_text(text)
    draw_curves(tmp_path / "metrics.csv", tmp_path / "curves.png")
    axis = drawn[0].axes[0]
    side = {text.get_text(): text.get_position()[1] for text in axis.texts}
    assert side == {"0.300": 5, "0.200": -12}
    assert {line.get_linestyle() for line in axis.lines} == {"--", "-"}


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


def test_clean_training_images_are_what_compares_with_validation() -> None:
    rows = [{"epoch": 0, "train/loss": 0.9, "train_eval/loss": 0.2, "val/loss": 0.3}]
    rows[0] |= {"train/other": 1.0, "d/train/accuracy": 0.1, "d/train_eval/accuracy": 0.8}
    found = curves(rows)
    assert found["loss"] == {"training": [(1, 0.2)], "validation": [(1, 0.3)]}
    assert found["accuracy"] == {"training": [(1, 0.8)]}


@pytest.mark.parametrize(
    ("metrics", "drop_rate", "said"),
    [
        (
            {"train_eval/loss": 0.05, "val/loss": 0.31},
            0.0,
            "0.05, of validation images 0.31: o",
        ),
        ({"train_eval/loss": 0.25, "val/loss": 0.31}, 0.5, "0.31: no overfitting."),
        (
            {"d/train_eval/loss": 0.05, "d/val/loss": 0.31},
            0.0,
            "overfitting. Try augmentation, dropout",
        ),
        (
            {
                "train_eval/loss": 0.3,
                "val/loss": 0.31,
                "train/accuracy": 0.7,
                "val/accuracy": 0.9,
            },
            0.5,
            "accuracy in training 70.0%, in validation 90.0%: dropout of 0.5 may be too much. "
            "Try a lower drop rate.",
        ),
    ],
)
def test_the_gap_is_read_in_one_line(
    metrics: dict[str, float], drop_rate: float, said: str
) -> None:
    line = read_gap(metrics, drop_rate)
    assert line is not None
    assert said in line
    assert "\n" not in line


def test_without_clean_training_images_no_gap_is_read() -> None:
    assert read_gap({"train/loss": 0.1, "val/loss": 0.9}) is None


def test_a_fit_measures_itself_on_clean_training_images() -> None:
    """With the weights that validation uses, whatever training adds, on the same images."""
    torch.manual_seed(0)
    network = ConvNet(size="small", batch_norm=True, drop_rate=0.5)
    task = ImageClassifier(network, lr=0.05, label_smoothing=0.3, ema_decay=0.9)
    data = Digits(128, shift=1)
    seen: dict[str, float] = {}

    class Watch(Callback):
        def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            # Before the average leaves the module again.
            images, labels = (torch.cat(parts) for parts in zip(*data.plain("train"), strict=True))
            logits = pl_module(data.normalize(images))
            seen["loss"] = float(cross_entropy(logits, labels))
            seen["accuracy"] = float((logits.argmax(1) == labels).float().mean())

    fitter = Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[TrainingSample(), Watch()],
    )
    fitter.fit(task, datamodule=data)
    for name, value in seen.items():
        assert float(fitter.callback_metrics[f"train_eval/{name}"]) == pytest.approx(
            value, rel=1e-4
        )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (89, "89 s"), (720, "12 min"), (3 * 3600 + 5 * 60, "3 h 05 min")],
)
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_run_is_named_by_recipe_and_version() -> None:
    assert run_name(Path("runs/resnet_fmnist/version_3")) == "resnet_fmnist/version_3"
