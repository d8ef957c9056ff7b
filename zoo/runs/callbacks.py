"""What a run writes: metrics, curves, checkpoints, a line an epoch."""

from __future__ import annotations

import csv
import signal
import threading
import time
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter, Checkpoint, RichProgressBar
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from zoo.core.files import sha256, written_whole
from zoo.core.lightning_file import checksum_file, write_checksum
from zoo.data.images import LabeledImages
from zoo.errors import UserError
from zoo.runs.metrics import METRICS_FILE, draw_curves, duration, read_metrics, run_name
from zoo.tasks.protocols import KeepsSamples, ScoresImages

REDRAWN = 0.1  # seconds between two readings of a running loss: a GPU's step does not wait for one


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes next to the file and renames, so that a killed run leaves no half checkpoint.

    The file's sha256 is written next to it, and compared with it whenever it is read.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        file = Path(path)
        with written_whole(file) as partial:
            super().save_checkpoint(checkpoint, partial, storage_options)
            digest = sha256(partial)
            # Killed before the new one is written, it leaves none rather than a wrong one.
            checksum_file(file).unlink(missing_ok=True)
        write_checksum(file, digest)

    def remove_checkpoint(self, path: Any) -> None:
        super().remove_checkpoint(path)
        checksum_file(Path(path)).unlink(missing_ok=True)


class LastCheckpoint(Checkpoint):
    """Keeps ``checkpoints/last.ckpt``: after every epoch, and at intervals of steps within one.

    When the process is asked to end (SIGTERM), it saves once more, between two training batches.
    It does not save before or during a validation: Lightning would skip that validation in the
    resumed run, and with averaged weights the module holds the average at that time. State that is
    not finite is never saved.

    Args:
        folder: where ``last.ckpt`` goes.
        every_n_steps: optimizer steps between two saves within an epoch.

    Raises:
        UserError: fewer than one step.
    """

    def __init__(self, folder: Path, every_n_steps: int = 1000) -> None:
        if every_n_steps < 1:
            raise UserError(f"--save_every_n_steps is {every_n_steps}: it must be at least 1")
        self.path = folder / "last.ckpt"
        self.every_n_steps = every_n_steps
        self._saved = 0
        self._due = False  # put off by a validation

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        self._due |= step % self.every_n_steps == 0 and step != self._saved
        if self._due and not _validates_next(trainer):
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._save(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # The end may have renewed the average's statistics.
        if trainer.global_step:
            self._save(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        # Ctrl-C may come in the middle of a step, and what is then in memory is no step's state.
        asked = isinstance(exception, SIGTERMException)
        if asked and trainer.training and trainer.global_step > self._saved:
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        trainer.save_checkpoint(self.path, weights_only=False)  # refuses what is not finite
        self._saved, self._due = trainer.global_step, False


class EndTogether(Callback):
    """Ends a fit of several processes after the same batch on all, when one is asked to (SIGTERM).

    Lightning's own handler exchanges tensors with the other processes wherever this one happens to
    be. Where they are exchanging something else, none of them goes on: a fit that was asked to end
    in the middle of a step hung, and saved nothing.
    """

    def __init__(self) -> None:
        self._asked = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._asked = False
        # Lightning registers its handler before this, and puts the former one back at the end.
        if trainer.world_size > 1 and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._ask)

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        self._asked = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.world_size > 1 and not _validates_next(trainer):
            self._agree(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.world_size > 1:
            self._agree(trainer)

    def _agree(self, trainer: Trainer) -> None:
        if trainer.strategy.reduce_boolean_decision(self._asked, all=False):
            trainer._signal_connector.received_sigterm = True  # acted on after these hooks


def _validates_next(trainer: Trainer) -> bool:
    """Whether the epoch ends or validation begins after this batch."""
    epoch, fetcher = trainer.fit_loop.epoch_loop, trainer.fit_loop._data_fetcher
    assert fetcher is not None
    return epoch.batch_progress.is_last_batch or epoch._should_check_val_fx(fetcher)


class RunBar(RichProgressBar):
    """Rich's bar of the epoch, with the running loss and the time left of the whole run."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._start, self._first_epoch = time.perf_counter(), trainer.current_epoch
        self._shown: dict[str, int | str | float | dict[str, float]] = {}
        self._read = 0.0

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        now = time.perf_counter()
        if trainer.training and now < self._read + REDRAWN:
            return self._shown
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        batches, epochs = trainer.num_training_batches, trainer.max_epochs or 0
        if trainer.training and epochs > 0 and 0 < batches < float("inf"):
            within = (trainer.fit_loop.epoch_loop.batch_idx + 1) / batches
            done = min(trainer.current_epoch + within, epochs)
            pace = (time.perf_counter() - self._start) / max(done - self._first_epoch, 1e-9)
            metrics["run left"] = duration(pace * (epochs - done))
        self._shown, self._read = metrics, now
        return metrics


IN_A_LINE = ("train/loss", "train_eval/loss", "val/loss", "val/accuracy")


class EpochLine(Callback):
    """One line an epoch, for a log file, where a progress bar would be noise."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start, self._first_epoch = time.perf_counter(), trainer.current_epoch

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics = sorted(trainer.callback_metrics.items())  # reduced: every process must ask
        if not trainer.is_global_zero:
            return
        done = trainer.current_epoch + 1
        elapsed = time.perf_counter() - self._start
        values = [
            f"{name} {float(value):.4f}"
            for name, value in metrics
            if "/".join(name.split("/")[-2:]) in IN_A_LINE  # stand-in data's have a prefix
        ]
        line = f"epoch {done}/{trainer.max_epochs or '?'}  {'  '.join(values)}"
        per_epoch = elapsed / max(1, done - self._first_epoch)
        line += f"  {per_epoch:.1f} s an epoch"
        if trainer.max_epochs and trainer.max_epochs > 0:
            line += f", {duration(per_epoch * (trainer.max_epochs - done))} left"
        print(line, flush=True)


class GivenSettings(Callback):
    """Lets a resumed fit step by the settings that it is given; else the saved ones would win."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._groups = [
            [{k: v for k, v in group.items() if k != "params"} for group in one.param_groups]
            for one in trainer.optimizers
        ]
        self._bases = [list(one.scheduler.base_lrs) for one in trainer.lr_scheduler_configs]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for optimizer, groups in zip(trainer.optimizers, self._groups, strict=True):
            for group, given in zip(optimizer.param_groups, groups, strict=True):
                group.update(given)
        for one, bases in zip(trainer.lr_scheduler_configs, self._bases, strict=True):
            scheduler: Any = one.scheduler  # of zoo.tasks.schedule: a factor of the peak
            scheduler.base_lrs = bases
            for group, base, factor in zip(
                scheduler.optimizer.param_groups, bases, scheduler.lr_lambdas, strict=True
            ):
                group["lr"] = base * factor(scheduler.last_epoch)


class Curves(Callback):
    """Draws ``curves.png`` after every epoch: loss and accuracy, where there are any.

    Args:
        folder: the run's. Asking the trainer for it would wait for every process.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._draw(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._draw(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._draw(trainer)  # of a run that diverges, too

    def _draw(self, trainer: Trainer) -> None:
        if not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            logger.save()
        metrics = self.folder / METRICS_FILE
        if read_metrics(metrics):
            draw_curves(metrics, self.folder / "curves.png", title=run_name(self.folder))


class TrainingSample(Callback):
    """Logs ``train_eval/*`` at every validation: what validation measures, of training images.

    The images are a fixed sample, clean, and scored by the weights that are validated (averaged
    ones where there is an average), in evaluation mode and without label smoothing. So a gap to
    ``val/*`` is one of generalization, which ``train/*`` cannot show: those images are augmented,
    under dropout and other weights each step.
    """

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data: Any = getattr(trainer, "datamodule", None)
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        if not isinstance(pl_module, ScoresImages) or not isinstance(data, LabeledImages):
            return
        limit = trainer.limit_val_batches
        most = limit if isinstance(limit, int) else None  # a run that is tried in a hurry
        sums: dict[str, Tensor] = {}
        for batch in islice(data.training_sample(), most):
            images, labels = trainer.strategy.batch_to_device(batch)
            with trainer.precision_plugin.forward_context():
                scores = pl_module.scores(images, labels)
            for name, values in {**scores, "count": torch.ones_like(scores["loss"])}.items():
                sums[name] = sums.get(name, 0) + values.sum()
        totals = {n: trainer.strategy.reduce(part, reduce_op="sum") for n, part in sums.items()}
        count = totals.pop("count")
        for name, total in totals.items():
            # Equal in all processes by now.
            pl_module.log(f"train_eval/{name}", total / count, sync_dist=True)


class Samples(Callback):
    """Lets a task that makes something keep a sample of it after every validation.

    Args:
        folder: the run's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        if isinstance(pl_module, KeepsSamples):
            pl_module.keep_sample(self.folder, trainer.current_epoch + 1)


class Predictions(BasePredictionWriter):
    """Writes ``predictions.csv``: for every image its label, confidence and probabilities.

    Where the images are files, each row has the file's name as well.
    """

    def __init__(self, path: Path, classes: list[str]) -> None:
        super().__init__("epoch")
        self.path, self.classes = path, classes

    def write_on_epoch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        predictions: Any,
        batch_indices: Any,
    ) -> None:
        probabilities: list[Tensor] = list(predictions)
        # One file a process: each has its own share of the images.
        path = self.path
        if trainer.world_size > 1:
            path = path.with_stem(f"{path.stem}_rank{trainer.global_rank}")
        list_files = getattr(getattr(trainer, "datamodule", None), "files", None)
        files: list[str] = list_files("test") if list_files is not None else []
        index = trainer.global_rank
        heading = ["index", *(["file"] if files else []), "label", "confidence"]
        with (
            written_whole(path) as partial,
            partial.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.writer(file)
            writer.writerow([*heading, *self.classes])
            for batch in probabilities:
                for row in batch.tolist():
                    best = max(range(len(row)), key=row.__getitem__)
                    name = self.classes[best] if self.classes else best
                    cells = [f"{value:.6f}" for value in row]
                    which = [index, files[index]] if files else [index]
                    writer.writerow([*which, name, f"{row[best]:.6f}", *cells])
                    index += trainer.world_size
        print(f"predictions: {path}")
