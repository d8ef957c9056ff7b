"""One display of progress for many fits."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from zoo.runs.metrics import duration


@contextmanager
def quietly() -> Iterator[None]:
    """Keeps Lightning from telling devices and seeds, once for each fit."""
    loggers = [logging.getLogger(f"lightning.{part}") for part in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its advice on loaders and devices
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def elapsed(what: str) -> Iterator[None]:
    """Shows on a terminal, for as long as something is measured, for how long already."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(
        *columns,
        console=console,
        transient=True,
        disable=not console.is_terminal,
        refresh_per_second=1,  # a claim may measure times of its own
    ) as shown:
        shown.add_task(what, total=None)
        yield


class Display(Callback):
    """Counts epochs of many fits in one bar; a log file gets a line for each fit.

    Args:
        epochs: of all fits together, those done before included.
    """

    def __init__(self, epochs: int) -> None:
        self.total, self.done, self.spent = epochs, 0, 0
        self.started = time.perf_counter()
        self.console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        left = TextColumn("epochs, {task.fields[left]}")
        self.bar = Progress(*columns, left, console=self.console, transient=True)
        self.task = self.bar.add_task("", total=epochs, left="")

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def name(self, fit: str) -> None:
        """Says what is being fitted now."""
        self.bar.update(self.task, description=fit)

    def skip(self, epochs: int) -> None:
        """Counts epochs that an earlier call has done."""
        self.done += epochs
        self._show()

    def line(self, text: str) -> None:
        """Prints a line above the bar."""
        self.console.print(text, highlight=False, soft_wrap=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.skip(trainer.current_epoch)  # of a fit that goes on: what it had done

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.done += 1
        self.spent += 1
        self._show()

    @property
    def left(self) -> str:
        """How long the rest will take, by the pace so far."""
        if not self.spent:
            return ""
        pace = (time.perf_counter() - self.started) / self.spent
        return f"{duration(pace * (self.total - self.done))} left"

    def _show(self) -> None:
        self.bar.update(self.task, completed=self.done, left=self.left)
