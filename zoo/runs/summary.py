"""What a finished fit says of itself: ``run.json`` for programs, ``summary.txt`` for people."""

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

from zoo import registry
from zoo.checkpoints.card import form_of
from zoo.runs.metrics import duration, read_metrics, run_name


def final_metrics(path: Path) -> dict[str, float]:
    """The last value of each metric of a run."""
    metrics: dict[str, float] = {}
    for row in read_metrics(path):
        metrics.update(
            {k: v for k, v in row.items() if k.split("/")[-1] not in ("step", "epoch", "lr")}
        )
    return metrics


def metric_lines(metrics: Mapping[str, float]) -> list[str]:
    """A line for each metric, by name; shares are in per cent."""
    width = max((len(name) for name in metrics), default=0)
    return [
        f"  {name:<{width}}  {value:{form_of(name)}}" for name, value in sorted(metrics.items())
    ]


def summary(folder: Path, facts: dict[str, Any], task: str) -> str:
    """What a finished run says of itself; the last lines are the Python that loads the result."""
    data = facts["data"]
    lines = [f"{run_name(folder)}: {facts['parameters']:,} parameters"]
    if data:
        lines[0] += f", {data['name']}"
    lines.append(
        f"{facts['epochs']} epochs, {facts['steps']:,} steps in "
        f"{duration(facts['wall_time_s'])}, seed {facts['seed']}"
    )
    lines += metric_lines(facts["metrics"])
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
    """What a run ran on, in words."""
    cpuinfo = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else []
    cpu = models[0].strip() if models else platform.processor() or platform.machine()
    text = f"{cpu}, {os.cpu_count()} cores"
    if trainer.strategy.root_device.type == "cuda":
        text += f"; {trainer.world_size} × {torch.cuda.get_device_name()}"
    return text


def versions() -> dict[str, str]:
    """Of Python and of the packages that numbers depend on."""
    packages = ("torch", "lightning", "torchvision", "timm", "torchmetrics")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}
