"""What the zoo gives a Lightning Trainer in addition to the recipe."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from zoo.core.devices import lacks_bf16, several_cpus, several_gpus
from zoo.errors import UserError
from zoo.runs import callbacks
from zoo.runs.metrics import run_name
from zoo.tasks.base import Task, metric_prefix


def as_list(value: Any) -> list[Any]:
    """Turns a setting of the trainer into a list: nothing, one, or several."""
    if value is None or isinstance(value, bool):
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def must_do_without_bf16(settings: Any, typed: Sequence[str]) -> bool:
    """Returns whether a recipe's bf16-mixed becomes float32; what was typed is kept.

    Args:
        settings: of the trainer.
        typed: the command line.
    """
    if settings.get("precision") != "bf16-mixed" or not lacks_bf16(settings):
        return False
    if any(argument.split("=")[0] == "--trainer.precision" for argument in typed):
        return False
    rank_zero_warn(
        "trainer.precision is 32-true in place of bf16-mixed: this machine has no bfloat16 "
        "arithmetic, and emulating it would take several times as long "
        "(--trainer.precision bf16-mixed uses it anyway)"
    )
    return True


def check_settings(settings: Any) -> None:
    """Refuses settings that Lightning would accept without a word.

    Raises:
        UserError: gradients are to be clipped to a negative norm, which would clip nothing.
    """
    clip = settings.get("gradient_clip_val")
    if clip is not None and not clip >= 0:
        raise UserError(
            f"trainer.gradient_clip_val is {clip}: give a norm above 0, or null for no limit"
        )


def use_tensor_cores() -> None:
    """Lets a CUDA device multiply float32 matrices in TensorFloat32, on its tensor cores."""
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")


def placement(settings: Any, model: LightningModule, alternates: bool = False) -> dict[str, Any]:
    """Chooses the Trainer's arguments for several devices: synchronized BatchNorm, and a strategy.

    Args:
        settings: of the trainer.
        model: the task.
        alternates: whether some parameters have no gradient for a part of the fit.
    """
    arguments: dict[str, Any] = {}
    if several_gpus(settings):
        arguments["sync_batchnorm"] = True
    several = several_gpus(settings) or several_cpus(settings)
    alternates = alternates or getattr(model, "alternates", False)
    if several and alternates and settings.get("strategy", "auto") in ("auto", "ddp"):
        arguments["strategy"] = "ddp_find_unused_parameters_true"
    return arguments


def progress(settings: Any) -> tuple[list[Callback], dict[str, Any]]:
    """Chooses a bar on a terminal, a line an epoch in a log file, or what the recipe has.

    Returns:
        Callbacks, and arguments of the trainer.
    """
    own_bar = any(isinstance(one, ProgressBar) for one in as_list(settings.get("callbacks")))
    if settings.get("enable_progress_bar") is not None or own_bar:
        return [], {}
    if sys.stderr.isatty():
        return [callbacks.RunBar()], {}
    return [callbacks.EpochLine()], {"enable_progress_bar": False, "enable_model_summary": False}


def fit_callbacks(
    folder: Path, model: Any, settings: Any, data: dict[str, Any], save_every_n_steps: int
) -> list[Callback]:
    """Makes the callbacks that write a fit's folder: curves, samples, last and best checkpoint.

    Args:
        folder: the run's.
        model: the task.
        settings: of the trainer.
        data: as the data module describes them.
        save_every_n_steps: optimizer steps within an epoch between two saves.
    """
    kept: list[Callback] = [
        callbacks.TrainingSample(),
        callbacks.Curves(folder),
        callbacks.LastCheckpoint(folder / "checkpoints", save_every_n_steps),
        callbacks.EndTogether(),
        callbacks.Samples(folder),
    ]
    if settings.get("limit_val_batches") != 0 and model.monitor:
        kept.append(
            ModelCheckpoint(
                folder / "checkpoints",
                filename="best",
                monitor=metric_prefix(data) + getattr(model, "monitor", Task.monitor),
                mode=getattr(model, "monitor_mode", Task.monitor_mode),
                auto_insert_metric_name=False,
                enable_version_counter=False,
            )
        )
    return kept


def more_loggers(settings: Any, folder: Path, wandb: str) -> list[Logger]:
    """Makes the recipe's own loggers, and that of Weights & Biases where it is asked for.

    Args:
        settings: of the trainer.
        folder: the run's.
        wandb: ``off``, ``online`` or ``offline``.
    """
    loggers = [one for one in as_list(settings.get("logger")) if isinstance(one, Logger)]
    if wandb != "off":
        from lightning.pytorch.loggers import WandbLogger

        rank_zero_only(folder.mkdir)(parents=True, exist_ok=True)
        loggers.append(
            WandbLogger(
                project="zoo",
                name=run_name(folder),
                save_dir=folder,
                offline=wandb == "offline",
            )
        )
    return loggers
