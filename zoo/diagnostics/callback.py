"""The audit as a callback of any Lightning Trainer."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from zoo.diagnostics.audit import SEVERITIES, audit
from zoo.errors import UserError


class AuditCallback(Callback):
    """Audits the model at the start of a fit, with its optimiser, batch size and modes.

    Args:
        fail_on: ``error``, ``warning`` or ``never``: stops the fit before its first step.
        example_input: the forward's argument; the first training batch's, as the data module
            hands it to the model, by default.
    """

    def __init__(self, fail_on: str = "error", example_input: Tensor | None = None) -> None:
        if fail_on not in (*SEVERITIES, "never"):
            raise UserError(f"fail_on is {fail_on!r}: choose error, warning or never")
        self.fail_on, self.example_input = fail_on, example_input

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        example = self.example_input
        if example is None:
            loader: Any = trainer.train_dataloader
            # Our own loader's place in the epoch must stay where it is.
            fresh = loader.fresh() if hasattr(loader, "fresh") else loader
            batch = trainer.strategy.batch_to_device(next(iter(fresh)))
            inputs_of = getattr(pl_module, "inputs_of", None)
            if inputs_of is not None:
                example = inputs_of(batch)
            else:
                example = batch[0] if isinstance(batch, list | tuple) else batch
        report = audit(pl_module, example, trainer=trainer)
        rank_zero_info(str(report))
        if self.fail_on != "never" and report.at_least(self.fail_on):
            raise UserError(
                f"the audit found {len(report.at_least(self.fail_on))} findings of severity "
                f"{self.fail_on} or graver: the fit was not begun"
            )
