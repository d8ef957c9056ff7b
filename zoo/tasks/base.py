"""What every task shares: a network, its optimizer, its average, and a faithful checkpoint."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import MeanMetric

from zoo import networks
from zoo.core.lightning_file import read_checkpoint
from zoo.errors import UserError
from zoo.networks.lora import lora_rank
from zoo.tasks.averaging import EMA
from zoo.tasks.optim import make_optimizer
from zoo.tasks.schedule import Schedule, make_schedule


class Task(LightningModule):
    """How a network learns, whatever its architecture.

    ``hparams`` hold the constructor's arguments, which are JSON values, with the network's
    description in place of the network, so that a ``.ckpt`` loads with ``weights_only=True``, in
    user code, without the command line. Metrics of stand-in data are logged under the name of
    these data, ``digits/val/accuracy``. A fit begins in training mode; resuming restores the random
    state of every process.

    Args:
        network: what is trained.
        optimizer: its name, as ``make_optimizer`` takes it.
        lr: peak learning rate.
        weight_decay: of matrices and filters; norms and biases are never decayed.
        momentum: where the optimizer has one.
        optimizer_args: further arguments of the optimizer.
        schedule: of the learning rate after the warm-up, as ``make_schedule`` takes it.
        warmup: part of the run, between 0 and 1, or a number of steps from 1 up.
        final_lr: what the schedule ends at, as a share of the peak.
        ema_decay: of the averaged weights; None for no average.
        channels_last: memory format of images and filters.
        compile: the network, by torch.compile.

    Raises:
        UserError: an argument is out of range.
    """

    network: nn.Module
    monitor = "val/loss"  # the metric that the best checkpoint is best in
    monitor_mode = "min"  # whether less or more of it is better
    headline = "val/loss"  # what a card states first
    alternates = False  # whether a step leaves some parameters without a gradient
    layer_decay: float | None = None  # of the learning rate, in fine-tuning

    def __init__(
        self,
        network: nn.Module,
        *,
        optimizer: str,
        lr: float,
        weight_decay: float = 0.0,
        momentum: float,
        optimizer_args: dict[str, Any] | None,
        schedule: Schedule,
        warmup: float,
        final_lr: float = 0.0,
        ema_decay: float | None,
        channels_last: bool = False,
        compile: bool = False,
    ) -> None:
        super().__init__()
        compiled = getattr(network, "_orig_mod", None)
        if isinstance(compiled, nn.Module):  # by torch.compile, which renames the weights
            network, compile = compiled, True
        if lr <= 0:
            raise UserError(f"model.lr is {lr}: it must be positive")
        if weight_decay < 0:
            raise UserError(f"model.weight_decay is {weight_decay}: it cannot be negative")
        if warmup < 0:
            raise UserError(f"model.warmup is {warmup}: it cannot be negative")
        if not 0 <= final_lr <= 1:
            raise UserError(f"model.final_lr is {final_lr}: a share of the peak, from 0 to 1")
        if ema_decay is not None and not 0 < ema_decay < 1:
            raise UserError(f"model.ema_decay is {ema_decay}: it must lie between 0 and 1, or null")
        self.optimizer, self.lr, self.weight_decay = optimizer, lr, weight_decay
        self.momentum, self.optimizer_args = momentum, optimizer_args
        self.schedule, self.warmup, self.final_lr = schedule, warmup, final_lr
        self.ema_decay = ema_decay
        self.channels_last = channels_last and not _overruns(network)
        self.network = network
        if self.channels_last:
            self.network.to(memory_format=torch.channels_last)
        if compile:
            self.network.compile()  # in place: the names of the state dict stay as they are
        # The arguments of the constructor that called this one. LightningCLI adds two names.
        self.save_hyperparameters(
            ignore=["network", "_class_path", "_instantiator"], frame=sys._getframe(1)
        )
        self.save_hyperparameters({"network": networks.describe(network)})
        # What the network was trained on, as its data module describes it.
        self.data_info: dict[str, Any] = {}
        self.training_metrics = nn.ModuleDict()  # of this epoch, by name
        self._random_state: list[dict[str, Tensor]] | None = None

    # -- input and output ------------------------------------------------------------------------

    def example_inputs(self, data: Any) -> tuple[Tensor, ...]:
        """What the network's forward takes, of the shapes of a data module; needs no data."""
        return (data.example_input(),)

    def inputs_of(self, batch: Any) -> Any:
        """The network's input within a batch (inputs, targets), or a batch of inputs alone."""
        return batch[0] if isinstance(batch, tuple | list) else batch

    def statistics_forward(self, batch: Any) -> None:
        """A forward by which BatchNorm of averaged weights learns its statistics."""
        self(self.inputs_of(batch))

    def averaged(self) -> nn.Module | None:
        """The part whose weights are averaged; None for all of it."""
        return None

    def forward(self, x: Tensor) -> Tensor:
        if x.is_floating_point():
            x = x.to(self.dtype)  # of weights in half or double precision
        if self.channels_last and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        return self.network(x)

    @property
    def tests(self) -> bool:
        """Whether the task measures anything on test data."""
        return type(self).test_step is not LightningModule.test_step

    def golden(self) -> Tensor:
        """Outputs (2, …) for an input that is always the same: a checkpoint keeps them."""
        raise NotImplementedError

    def log(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        """Logs a metric as Lightning does; one of stand-in data is named after these data."""
        super().log(metric_prefix(self.data_info) + name, value, *args, **kwargs)

    def log_training(self, batch_size: int, **values: Tensor) -> None:
        """Logs an epoch's mean training metrics, and the step's ``loss`` to the progress bar.

        The means are over samples and over all processes, and a run that is resumed within an
        epoch goes on with them.
        """
        for name, value in values.items():
            if name not in self.training_metrics:
                self.training_metrics[name] = MeanMetric().to(self.device)
            metric = self.training_metrics[name]
            metric.update(value, weight=batch_size)  # type: ignore[operator]
            self.log(
                f"train/{name}",
                metric,
                on_step=False,
                on_epoch=True,
                metric_attribute=f"training_metrics.{name}",  # which Lightning may have missed
            )
        # For the progress bar alone; the epoch's mean is what metrics.csv keeps.
        self.log("loss", values["loss"], prog_bar=True, logger=False)

    def check_finite(self, loss: Tensor, applied: bool = False) -> Tensor:
        """Stops the run before a loss that is no number reaches the weights, or once it has."""
        if not torch.isfinite(loss):
            fate = "have taken it" if applied else "were not changed by it"
            raise UserError(
                f"the training loss is {loss.item()} at step {self.global_step}: the weights "
                f"{fate}, and no checkpoint was written with it; lower model.lr "
                f"({self.lr}), warm up longer, or train in trainer.precision 32-true"
            )
        return loss

    # -- Lightning's hooks -----------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        describe = getattr(getattr(self.trainer, "datamodule", None), "describe", None)
        if describe is not None and (stage == "fit" or not self.data_info):
            self.data_info = describe()

    def on_fit_start(self) -> None:
        self.train()  # Lightning would leave a loaded model in evaluation mode for the whole fit

    def configure_callbacks(self) -> list[Callback]:
        # Lightning asks at every stage, and only a fit averages.
        fitting = self._trainer is None or self._trainer.state.fn == TrainerFn.FITTING
        return [EMA(self.ema_decay)] if fitting and self.ema_decay is not None else []

    def make_optimizer(self) -> torch.optim.Optimizer:
        """The optimizer alone, without a trainer."""
        return make_optimizer(
            self.network,
            self.optimizer,
            self.lr,
            self.weight_decay,
            self.momentum,
            self.optimizer_args,
            self.layer_decay,
        )

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.make_optimizer()
        steps = self._total_steps()
        schedule = make_schedule(optimizer, self.schedule, self.warmup, steps, self.final_lr)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def _total_steps(self) -> int:
        steps = self.trainer.estimated_stepping_batches
        # To count, Lightning made the loaders, before a checkpoint's state of them is read, and
        # would keep them: a resumed run would begin its epoch anew. It makes them again instead.
        self.trainer.fit_loop._combined_loader = None
        if steps != float("inf"):
            return int(steps)
        if self.schedule != "constant":
            raise UserError(
                f"model.schedule {self.schedule} needs an end: set trainer.max_epochs or "
                "trainer.max_steps, or model.schedule constant"
            )
        if 0 < self.warmup < 1:
            raise UserError(
                f"model.warmup {self.warmup} is part of a run without an end: give it in steps"
            )
        return max(1, round(self.warmup))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self._random_state is not None:
            state = self._random_state[self.global_rank % len(self._random_state)]
            torch.set_rng_state(state["cpu"])
            if "cuda" in state and self.device.type == "cuda":
                torch.cuda.set_rng_state(state["cuda"], self.device)
            self._random_state = None

    def on_train_epoch_end(self) -> None:
        self.log("lr", self.trainer.optimizers[0].param_groups[0]["lr"])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self.device)
        states: list[Any] = [state]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            states = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(states, state)
        checkpoint["random_state"] = states
        checkpoint["task"] = type(self).__name__
        checkpoint["data"] = self.data_info
        if rank := lora_rank(self.network):
            checkpoint["lora_rank"] = rank
        if self._trainer is not None and not _is_last_batch(self.trainer):
            checkpoint["training_metrics"] = {
                name: metric.metric_state for name, metric in self.training_metrics.items()
            }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.data_info = checkpoint.get("data", {})
        if self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING:
            self._random_state = checkpoint.get("random_state")
            if self.trainer.is_global_zero:  # one process has all that was gathered
                for name, state in checkpoint.get("training_metrics", {}).items():
                    self.training_metrics[name] = MeanMetric()
                    self.training_metrics[name].load_state_dict(state, strict=False)

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls,
        checkpoint_path: str | Path,
        map_location: Any = "cpu",
        hparams_file: str | Path | None = None,
        strict: bool | None = None,
        weights_only: bool | None = True,
        **kwargs: Any,
    ) -> Self:
        """Rebuilds task and network from a ``.ckpt`` that ``fit`` wrote, on the CPU by default.

        Args:
            checkpoint_path: the file.
            map_location: where the weights go.
            hparams_file, strict: as Lightning has them.
            weights_only: nothing but tensors and JSON values is unpickled.
            kwargs: constructor arguments in place of the recorded ones; ``network`` is needed
                for one that is not the zoo's.

        Raises:
            UserError: no such file, no checkpoint, or a network that must be given.
        """
        path = Path(checkpoint_path)
        if "network" not in kwargs:
            hparams = read_checkpoint(path).get("hyper_parameters", {})
            if not hparams.get("network"):
                raise UserError(
                    f"{path} was trained on a network that is not the zoo's: pass it, "
                    f"{cls.__name__}.load_from_checkpoint(path, network=...)"
                )
            kwargs["network"] = networks.build(hparams["network"])
        return super().load_from_checkpoint(
            path, map_location, hparams_file, strict, weights_only, **kwargs
        )


def _is_last_batch(trainer: Any) -> bool:
    return bool(trainer.fit_loop.epoch_loop.batch_progress.is_last_batch)


def ramp(shape: Sequence[int]) -> Tensor:
    """Computes numbers in [-1, 1] that are always the same: an input for golden outputs."""
    steps = torch.arange(math.prod(shape), dtype=torch.float64)
    return torch.sin(steps * 0.37 + steps.square() * 1e-4).float().view(*shape)


def _overruns(network: nn.Module) -> bool:
    """Whether a CPU's backward in channels_last would write past its workspace.

    On processors without AVX-512 oneDNN does so for strided 1 × 1 convolutions of fewer than 8
    channels (uxlfoundation/oneDNN issue 6035): wrong gradients, and then a crash.
    """
    return any(
        isinstance(module, nn.Conv2d)
        and set(module.kernel_size) == {1}
        and max(module.stride) > 1
        and module.in_channels // module.groups < 8
        for module in network.modules()
    )


def metric_prefix(data: dict[str, Any]) -> str:
    """What metrics of stand-in data begin with; ``data`` is what a data module's describe says."""
    return f"{data['name'].lower()}/" if "instead_of" in data else ""
