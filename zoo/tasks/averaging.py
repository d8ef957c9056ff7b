"""An exponential moving average (EMA) of the weights, with BatchNorm statistics of its own."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.trainer.states import RunningStage, TrainerFn
from torch import Tensor

from zoo.diagnostics.recalibrate import estimate_running_statistics


class EMA(WeightAveraging):
    """Averages the weights during training; validates, saves and ends with the average.

    Running statistics are not parameters: those of the trained weights do not belong to the
    averaged ones (Izmailov et al. 2018, section 3.2, for weight averaging in general). Before
    every validation and at the end of the fit they are estimated anew for the average, over
    batches augmented as in training (which validates better than clean ones: the weights know
    no others), and with dropout off.

    What a task does not want averaged (``Task.averaged``) stays as trained: the vectors of a
    discriminator's spectral norm belong to its own weights, and an average of them is no vector
    of length one.

    Args:
        decay: of the average; at most (1 + n) / (10 + n) after n steps, so that the average soon
            forgets where it started. This caps it by the run's length, too: where a decay is too
            slow for a run, 0.9999 for 300 steps say, the average ends as that of about the last
            tenth of its steps.
        batches: of the training set, for the final statistics; at most as many as an epoch of this
            fit has (``limit_train_batches``).
        validation_batches: the same, for those of every validation before.
    """

    def __init__(
        self, decay: float = 0.998, batches: int = 32, validation_batches: int = 8
    ) -> None:
        super().__init__(use_buffers=True)
        self.decay, self.batches, self.validation_batches = decay, batches, validation_batches
        self._averaged: list[tuple[Tensor, Tensor]] = []
        self._followed: list[tuple[Tensor, Tensor]] = []
        self._weight: float | Tensor = 0.0  # of the trained weights in the next update

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        assert self._average_model is not None
        # It was made before the module was moved to its device.
        self._average_model.to(pl_module.device)
        # Paired once: to walk the modules takes longer than to average a small network.
        averaged = pl_module.averaged()  # type: ignore[operator]
        inside = None if averaged is None else {id(tensor) for tensor in tensors_of(averaged)}
        self._averaged, self._followed, self._weight = [], [], 0.0
        for kept, live in zip(
            tensors_of(self._average_model.module), tensors_of(pl_module), strict=True
        ):
            mean = live.is_floating_point() and (inside is None or id(live) in inside)
            pairs = self._averaged if mean else self._followed
            pairs.append((kept, live))

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if trainer.global_step <= self._latest_update_step:  # gradients are being accumulated
            return
        assert self._average_model is not None
        if not pl_module.records:  # else it is a part of the step
            self._weight = 1 - self._rate()
            self.update()
        self._average_model.n_averaged += 1
        self._latest_update_step = trainer.global_step

    def _rate(self) -> float:
        """What stays of the average in the next update; the first takes the weights as they are."""
        count = self._latest_update_step
        return min(self.decay, (1 + count) / (10 + count)) if count else 0.0

    def prepare(self, device: torch.device) -> None:
        """Writes the next update's weight where a recorded step reads it."""
        if not isinstance(self._weight, Tensor):
            self._weight = torch.zeros((), device=device)
        self._weight.fill_(1 - self._rate())

    @torch.no_grad()
    def update(self) -> None:
        """Moves the average towards the trained weights."""
        kept = [mean for mean, _ in self._averaged]
        # Of weights in half precision, the average keeps its own.
        live = [one.to(mean.dtype) for mean, one in self._averaged]
        if isinstance(self._weight, Tensor):  # torch's lerp of lists takes a number alone
            steps = torch._foreach_sub(live, kept)
            torch._foreach_mul_(steps, self._weight)
            torch._foreach_add_(kept, steps)
        else:
            torch._foreach_lerp_(kept, live, self._weight)
        if self._followed:
            followed, lead = zip(*self._followed, strict=True)
            torch._foreach_copy_(followed, lead)

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING:  # after a fit the module is the average
            return
        super().on_validation_epoch_start(trainer, pl_module)  # the average is now in pl_module
        if self._average_model is not None and not trainer.sanity_checking:
            # What the last validation says is of the final weights, with their statistics.
            last = is_last_epoch(trainer)
            batches = self.batches if last else self.validation_batches
            self._renew_statistics(trainer, pl_module, batches)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            super().on_validation_epoch_end(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)  # the average is now in pl_module, for good
        self._renew_statistics(trainer, pl_module, self.batches)
        assert self._average_model is not None
        self._average_model.module.load_state_dict(pl_module.state_dict())

    def _renew_statistics(self, trainer: Trainer, module: Any, batches: int) -> None:
        loader: Any = trainer.train_dataloader
        # Our own loader's position in the epoch must stay where it is.
        fresh = loader.fresh() if hasattr(loader, "fresh") else loader

        def forward(batch: Any) -> None:
            # A data module's augmentation is seeded by the step, which stands still here.
            torch.manual_seed((torch.initial_seed() + 1) % 2**63)
            batch = trainer.strategy.batch_to_device(batch)
            with trainer.precision_plugin.forward_context():
                module.statistics_forward(batch)

        batches = int(min(batches, trainer.num_training_batches))  # which may be infinite
        devices = [module.device] if module.device.type == "cuda" else []
        stage, trainer.state.stage = trainer.state.stage, RunningStage.TRAINING  # augments
        try:
            with torch.random.fork_rng(devices):
                estimate_running_statistics(module, islice(fresh, batches), forward)
        finally:
            trainer.state.stage = stage


def tensors_of(module: torch.nn.Module) -> Iterator[Tensor]:
    """Lists parameters, then buffers, each once."""
    return chain(module.parameters(), module.buffers())


def is_last_epoch(trainer: Trainer) -> bool:
    """Returns whether a fit ends after this epoch, as far as is known."""
    epochs, steps = trainer.max_epochs, trainer.max_steps
    if epochs is not None and 0 <= epochs <= trainer.current_epoch + 1:
        return True
    return 0 <= steps <= trainer.global_step
