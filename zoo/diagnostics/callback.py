"""The audit as a callback of any Lightning Trainer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.utils.data import DataLoader

from zoo.core.text import counted
from zoo.diagnostics.audit import Report, audit
from zoo.diagnostics.forward import inputs_of
from zoo.diagnostics.rules.base import SEVERITIES
from zoo.diagnostics.trace.snapshot import untouched
from zoo.errors import UserError


class AuditCallback(Callback):
    """Audits the model at the start of a fit, with its optimizers, batch size and modes.

    What stops a fit is a finding, never the audit itself: where the model cannot be run on the
    input, that is a warning.

    Args:
        fail_on: ``error``, ``warning``, ``info`` or ``never``: stops the fit before its first step.
        example_input: a tensor, a tuple (positional), a mapping (keywords), or what ``forward``
            takes. By default Lightning's ``example_input_array``, else what the first training
            batch begins with.
        forward: takes the module and the example and runs it, where its inputs are of another form.
    """

    def __init__(
        self,
        fail_on: str = "error",
        example_input: Any = None,
        forward: Callable[[LightningModule, Any], Any] | None = None,
    ) -> None:
        if fail_on not in (*SEVERITIES, "never"):
            raise UserError(f"fail_on is {fail_on!r}: choose error, warning, info or never")
        self.fail_on, self.example_input, self.forward = fail_on, example_input, forward

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        report = self._audit(trainer, pl_module)
        if report is None:
            return
        rank_zero_info(str(report))
        if not report.audited:
            what = [*report.unseen, *report.unaudited]
            rank_zero_warn(f"AuditCallback: part of the model is not audited: {what}")
        if self.fail_on != "never" and report.at_least(self.fail_on):
            raise UserError(
                f"the audit found {counted(len(report.at_least(self.fail_on)), 'finding')} of "
                f"severity {self.fail_on} or higher: the fit was not started"
            )

    def _audit(self, trainer: Trainer, module: LightningModule) -> Report | None:
        try:
            with untouched(module), trainer.precision_plugin.forward_context():
                example = self._example(trainer, module)
                example = trainer.precision_plugin.convert_input(example)
                forward = None if self.forward is None else partial(self.forward, module)
                return audit(module, example, forward=forward, trainer=trainer)
        except Exception as error:
            rank_zero_warn(
                f"AuditCallback: not audited ({type(error).__name__}: {error}); give it "
                "example_input, what the model's forward takes, or forward="
            )
            return None

    def _example(self, trainer: Trainer, module: LightningModule) -> Any:
        if self.example_input is not None:
            return self.example_input
        if module.example_input_array is not None:
            return module.example_input_array
        batch = trainer.strategy.batch_to_device(next(iter(_again(trainer.train_dataloader))))
        if own := getattr(module, "inputs_of", None):
            return own(batch)
        if self.forward is not None:
            return batch
        return inputs_of(module, batch)


def _again(loader: Any) -> Any:
    """A loader whose first batch can be taken without moving the one that trains."""
    if hasattr(loader, "fresh"):
        return loader.fresh()
    if isinstance(loader, DataLoader) and loader.num_workers:
        # Its workers would be shared, or started for one batch.
        return DataLoader(loader.dataset, batch_size=2, collate_fn=loader.collate_fn)
    if isinstance(loader, dict | list | tuple):
        return _again(next(iter(loader.values())) if isinstance(loader, dict) else loader[0])
    return loader
