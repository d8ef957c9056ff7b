"""Summarizes a finished fit: ``run.json`` for programs, ``summary.txt`` for people."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

from zoo import recipes, registry
from zoo.checkpoints.card import form_of
from zoo.core.text import counted
from zoo.runs.metrics import duration, read_metrics, run_name

# A gap is overfitting from 0.1 nats on and half the training loss: on 5,000 images each, the
# standard error of a difference of losses is about 0.01. Augmentation alone costs a training
# accuracy some points.
OVERFITTING = 0.1, 0.5
UNDERFITTING = 0.1


def final_metrics(path: Path) -> dict[str, float]:
    """Reads the last value of each metric of a run."""
    metrics: dict[str, float] = {}
    for row in read_metrics(path):
        metrics.update(
            {k: v for k, v in row.items() if k.split("/")[-1] not in ("step", "epoch", "lr")}
        )
    return metrics


def metric_lines(metrics: Mapping[str, float]) -> list[str]:
    """Formats a line for each metric, by name; shares are in percent."""
    width = max((len(name) for name in metrics), default=0)
    return [
        f"  {name:<{width}}  {value:{form_of(name)}}" for name, value in sorted(metrics.items())
    ]


def read_gap(metrics: Mapping[str, float], drop_rate: float = 0.0) -> str | None:
    """Reads the gap between training and validation, in one line.

    Args:
        metrics: the last of each, ``train_eval/loss`` and ``val/loss`` among them; stand-in data's
            have a prefix.
        drop_rate: the largest of the network.

    Returns:
        None where clean training images were not measured.
    """
    name = next((name for name in metrics if name.endswith("train_eval/loss")), None)
    if name is None or (other := name.replace("train_eval", "val")) not in metrics:
        return None
    train, validation = metrics[name], metrics[other]
    read = f"loss of training images {train:.2f}, of validation images {validation:.2f}: "
    if validation - train > max(OVERFITTING[0], OVERFITTING[1] * train):
        return read + "overfitting. Try augmentation, dropout in the head or weight decay."
    # Neither is smoothed, so that they compare; the first is under dropout.
    seen = metrics.get(name.replace("train_eval/loss", "train/accuracy"), 1.0)
    held_out = metrics.get(other.replace("loss", "accuracy"), 0.0)
    if drop_rate >= 0.3 and held_out - seen > UNDERFITTING:
        return (
            f"accuracy in training {seen:.1%}, in validation {held_out:.1%}: dropout of "
            f"{drop_rate:g} may be too much. Try a lower drop rate."
        )
    return read + "no overfitting."


def drop_rate_of(run: Path) -> float:
    """Finds the largest drop rate of the network of a run; 0 where it has none."""
    file = run / "config.yaml"
    if not file.is_file():
        return 0.0
    network = recipes.read(file).get("model", {}).get("init_args", {}).get("network") or {}
    settings = network.get("init_args", {}) if isinstance(network, dict) else {}
    rates = [value for key, value in settings.items() if key.endswith("drop_rate")]
    return max((float(rate) for rate in rates if isinstance(rate, int | float)), default=0.0)


def summary(folder: Path, facts: dict[str, Any], task: str) -> str:
    """Writes the summary of a finished run; the last lines are the Python that loads the result."""
    data = facts["data"]
    lines = [f"{run_name(folder)}: {facts['parameters']:,} parameters"]
    if data:
        lines[0] += f", {data['name']}"
    lines.append(
        f"{counted(facts['epochs'], 'epoch')}, {counted(facts['steps'], 'step')} in "
        f"{duration(facts['wall_time_s'])}, seed {facts['seed']}"
    )
    lines += metric_lines(facts["metrics"])
    if gap := read_gap(facts["metrics"], drop_rate_of(folder)):
        lines.append(gap)
    lines.append(f"curves, metrics, checkpoints: {folder}")
    file = folder / "checkpoints" / "last.ckpt"
    lines += [
        "",
        "Use it in Python:",
        "",
        "import zoo",
        f'model = zoo.load("{file.as_posix()}")  # {task} in eval mode',
        registry.TASKS[task].usage if task in registry.TASKS else "",
    ]
    if "instead_of" in data:  # the final line, where nobody can miss it, and still Python
        lines.append(
            f"# !! TRAINED ON {data['name'].upper()}, NOT ON {data['instead_of'].upper()}: every "
            "number above is about the stand-in data."
        )
    return "\n".join(lines) + "\n"


def hardware(trainer: Trainer) -> str:
    """Describes the hardware of a run."""
    text = processor()
    if trainer.strategy.root_device.type == "cuda":
        text += f"; {trainer.world_size} × {torch.cuda.get_device_name()}"
    return text


def processor() -> str:
    """Describes this machine's processor."""
    cpuinfo = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else []
    cpu = models[0].strip() if models else platform.processor() or platform.machine()
    return f"{cpu}, {counted(cores, 'core')}" if (cores := os.cpu_count()) else cpu


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that numbers depend on."""
    packages = ("torch", "lightning", "torchvision", "timm", "torchmetrics")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}
