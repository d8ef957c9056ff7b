"""``--early_stop METRIC[,PATIENCE]``: Lightning's EarlyStopping, with faults in one line."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from zoo.core.text import counted, nearest, shown
from zoo.errors import UserError
from zoo.tasks.base import Task, metric_prefix

RISING = ("accuracy", "f1", "recall", "precision", "auroc", "iou", "dice")  # more is better


class EarlyStop(EarlyStopping):
    """Stops a fit once a metric no longer improves."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check(super().on_train_epoch_end, trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._check(super().on_validation_end, trainer, pl_module)

    def _check(self, check: Any, trainer: Trainer, pl_module: LightningModule) -> None:
        try:
            check(trainer, pl_module)
        except RuntimeError:
            logged = sorted(name for name in trainer.callback_metrics if "/" in name)
            if self.monitor in logged:
                raise
            raise UserError(
                f"--early_stop {self.monitor}: no such metric{nearest(self.monitor, logged)}; this "
                f"run logs {', '.join(logged)}"
            ) from None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.best_score.isinf():
            rank_zero_warn(
                f"--early_stop {self.monitor} was never checked: the fit had no validation"
            )
        elif self.stopped_epoch:
            rank_zero_info(
                f"stopped after {counted(self.stopped_epoch + 1, 'epoch')}: {self.monitor} has not "
                f"improved on {self.best_score:.4f} for {counted(self.wait_count, 'validation')}"
            )


def early_stop(given: str, model: Any, data: dict[str, Any]) -> EarlyStop:
    """Reads the option.

    Args:
        given: ``METRIC`` or ``METRIC,PATIENCE``; patience counts validations, 3 by default.
        model: the task, which knows whether more of the metric it monitors is better.
        data: as the data module describes them.

    Raises:
        UserError: patience is not a whole number from 0 up.
    """
    metric, comma, patience = given.partition(",")
    if not metric or (comma and not patience.isdecimal()):
        raise UserError(f"--early_stop {shown(given)}: give METRIC or METRIC,PATIENCE: val/loss,5")
    mode = "max" if metric.endswith(RISING) else "min"
    if metric == getattr(model, "monitor", Task.monitor):
        mode = getattr(model, "monitor_mode", Task.monitor_mode)
    prefix = metric_prefix(data)
    name = metric if metric.startswith(prefix) else prefix + metric
    return EarlyStop(name, patience=int(patience or 3), mode=mode)
