"""``run.json``: what runs, since when, how long it has taken, and how it ended."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from zoo.core.files import write_json
from zoo.runs.summary import hardware

RECORD_FILE = "run.json"


def read_record(run: Path) -> dict[str, Any]:
    """Reads a run's record; nothing where there is none that can be read."""
    try:
        content = json.loads((run / RECORD_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def is_finished(record: dict[str, Any]) -> bool:
    """Returns whether a record is that of a finished fit."""
    return bool(record) and record.get("status", "finished") == "finished"


class RunRecord(Callback):
    """Keeps ``run.json`` from the first step of a fit to its end, over all parts of a resumed one.

    Args:
        folder: the run's.
        facts: JSON values that are known before the first step.
    """

    def __init__(self, folder: Path, facts: dict[str, Any]) -> None:
        self.folder, self.facts = folder, facts
        self.earlier = 0.0  # seconds of the parts before this one
        self.started: float | None = None

    @property
    def seconds(self) -> float:
        """Of training and validation, in all parts of the run."""
        here = 0.0 if self.started is None else time.perf_counter() - self.started
        return self.earlier + here

    def write(self, trainer: Trainer, status: str, **facts: Any) -> dict[str, Any]:
        """Writes the record, and returns it.

        Args:
            trainer: Lightning's.
            status: ``running``, ``interrupted``, ``failed`` or ``finished``.
            facts: further JSON values.
        """
        record = {
            "status": status,
            **self.facts,
            "hardware": hardware(trainer),
            "devices": trainer.world_size,
            "precision": trainer.precision,
            "epochs": trainer.current_epoch,
            "steps": trainer.global_step,
            "wall_time_s": round(self.seconds, 1),
            **facts,
        }
        if trainer.is_global_zero:
            write_json(self.folder / RECORD_FILE, record)
        return record

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self.earlier = float(checkpoint.get("wall_time_s", 0.0))

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["wall_time_s"] = self.seconds

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.started = time.perf_counter()
        self.write(trainer, "running")

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        if self.started is not None:
            stopped = isinstance(exception, KeyboardInterrupt | SystemExit)
            self.write(trainer, "interrupted" if stopped else "failed")
