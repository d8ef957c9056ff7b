"""What every task shares: a network, its optimizer, its average, and a faithful checkpoint."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

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
from zoo.tasks import recorded_step
from zoo.tasks.averaging import EMA
from zoo.tasks.finite import LateLosses, not_finite
from zoo.tasks.optim import make_optimizer
from zoo.tasks.recorded_step import RecordedStep
from zoo.tasks.schedule import Schedule, make_schedule

Record = bool | Literal["auto"]


class TrainingMean(MeanMetric):
    """A weighted mean whose update waits for no device: torchmetrics' looks for a NaN."""

    def update(self, value: Tensor, weight: float | Tensor = 1) -> None:  # type: ignore[override]
        """Adds a scalar with its weight."""
        self.mean_value += value * weight
        self.weight += weight

    def gathered(self) -> dict[str, Any]:
        """The sums over all processes, which each of them must ask for."""
        with self.sync_context():
            return dict(self.metric_state)


# What a run goes on from: Lightning's names, the last two those of an average.
RESUMED = ("state_dict", "optimizer_states", "current_model_state", "averaging_state")


class Task(LightningModule):
    """How a network learns, whatever its architecture.

    ``hparams`` hold the constructor's arguments, which are JSON values, with the network's
    description in place of the network, so that a ``.ckpt`` loads with ``weights_only=True``, in
    user code, without the command line. Metrics of stand-in data are logged under the name of
    these data, ``digits/val/accuracy``. A fit begins in training mode; resuming restores the random
    state of every process.

    On one CUDA device a training step is recorded as a graph and replayed (``recorded_step``):
    augmentation, forward, backward, clipping, the optimizer's step and the average.

    Args:
        network: what is trained.
        optimizer: its name, as ``make_optimizer`` takes it.
        lr: peak learning rate.
        weight_decay: weight decay of matrices and filters; norms and biases are never decayed.
        momentum: where the optimizer has one.
        optimizer_args: further arguments of the optimizer.
        schedule: of the learning rate after the warm-up, as ``make_schedule`` takes it.
        warmup: part of the run, between 0 and 1, or a number of steps from 1 up.
        final_lr: what the schedule ends at, as a share of the peak.
        ema_decay: of the averaged weights; None for no average.
        channels_last: memory format of images and filters.
        compile: compiles the network by torch.compile.
        record: whether a training step is recorded as a CUDA graph: ``auto`` where it can be, and
            else one line says why not; true raises where it cannot; false never.

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
        record: Record = "auto",
    ) -> None:
        super().__init__()
        compiled = getattr(network, "_orig_mod", None)
        if isinstance(compiled, nn.Module):  # by torch.compile, which renames the weights
            network, compile = compiled, True
        _check_optimizer(lr, weight_decay)
        if warmup < 0:
            raise UserError(f"model.warmup is {warmup}: it cannot be negative")
        if not 0 <= final_lr <= 1:
            raise UserError(f"model.final_lr is {final_lr}: a share of the peak, from 0 to 1")
        if ema_decay is not None and not 0 < ema_decay < 1:
            raise UserError(f"model.ema_decay is {ema_decay}: it must lie between 0 and 1, or null")
        self.optimizer, self.lr, self.weight_decay = optimizer, lr, weight_decay
        self.momentum, self.optimizer_args = momentum, optimizer_args
        self.schedule, self.warmup, self.final_lr = schedule, warmup, final_lr
        self.ema_decay, self.record = ema_decay, record
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
        self._logged_epoch: int | None = None  # whose means Lightning knows of
        self._random_state: list[dict[str, Tensor]] | None = None
        # Of a fit: the step as a graph, and losses not yet read.
        self._recorded: RecordedStep | None = None
        self._augments = False  # whether the recorded step augments its batch
        self._late_losses: LateLosses | None = None

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
        """Computes outputs (2, …) for an input that is always the same: a checkpoint keeps them."""
        raise NotImplementedError

    def log(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
        """Logs a metric as Lightning does; one of stand-in data is named after these data."""
        super().log(metric_prefix(self.data_info) + name, value, *args, **kwargs)

    def log_training(self, weight: int | Tensor, **values: Tensor) -> None:
        """Logs an epoch's mean training metrics, and the step's ``loss`` to the progress bar.

        The means are over samples and over all processes, and a run that is resumed within an
        epoch goes on with them.

        Args:
            weight: how many samples the values are means of.
            values: scalars, by name.
        """
        for name, value in values.items():
            if name not in self.training_metrics:
                self.training_metrics[name] = TrainingMean().to(self.device)
            self.training_metrics[name].update(value.detach(), weight)  # type: ignore[operator]
        if self._logged_epoch != self.current_epoch:  # Lightning computes them at its end
            self._logged_epoch = self.current_epoch
            for name in values:
                self.log(
                    f"train/{name}",
                    self.training_metrics[name],
                    on_step=False,
                    on_epoch=True,
                    metric_attribute=f"training_metrics.{name}",  # Lightning may have missed it
                )
        # For the progress bar alone; the epoch's mean is what metrics.csv keeps. A step that is
        # one launch would take longer to log than to launch.
        if "loss" in values and (self._recorded is None or self.trainer.progress_bar_callback):
            bar = self.trainer.progress_bar_callback is not None  # else nobody reads it
            self.log("loss", values["loss"].detach(), prog_bar=bar, logger=False)

    # -- a training step -------------------------------------------------------------------------

    def training_values(self, batch: Any) -> dict[str, Tensor]:
        """Computes the ``loss`` of a training batch, and other scalars to be logged, by name.

        It asks the device for no value, so that it can be recorded.
        """
        raise NotImplementedError

    def training_weight(self, batch: Any) -> int | Tensor:
        """How many samples the training values are means of."""
        return len(batch[0])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if self._recorded is None:
            values = self.training_values(batch)
            loss = self.check_finite(values["loss"])
        else:
            ends = not self.trainer.fit_loop._should_accumulate()
            values = self.run_recorded(batch, ends)
            loss = values["loss"]
        self.watch(self.global_step, loss)
        self.log_training(self.training_weight(batch), **values)
        return loss

    def run_recorded(self, tensors: Sequence[Tensor], ends: bool = True) -> dict[str, Tensor]:
        """A step by its recording; as it is written until there is one."""
        assert self._recorded is not None
        if (average := self._average()) is not None:
            average.prepare(self.device)
        return self._recorded(*tensors, ends=ends)

    def whole_step(self, *batch: Tensor, ends: bool) -> dict[str, Tensor]:
        """All of a step, of tensors alone: what ``recorded_step`` records.

        Args:
            batch: as the data module hands it over; images that are bytes are augmented here.
            ends: whether the optimizer steps; otherwise gradients are accumulated.
        """
        given: Any = batch
        if self.augmentation_generator is not None and batch[0].dtype == torch.uint8:
            given = self._data().augmented(batch, self.augmentation_generator)
        values = self.training_values(given)
        with torch.autocast(self.device.type, enabled=False):
            loss = values["loss"] / self.trainer.accumulate_grad_batches
            loss.backward()  # type: ignore[no-untyped-call]
            if ends:
                optimizer: Any = self.optimizers(use_pl_optimizer=False)
                clip, way = self.trainer.gradient_clip_val, self.trainer.gradient_clip_algorithm
                self.configure_gradient_clipping(optimizer, clip, way)
                optimizer.step()
                self.take_average()
        return {name: value.detach() for name, value in values.items()}

    def take_average(self) -> None:
        """The last part of a recorded step."""
        if (average := self._average()) is not None:
            average.update()

    @property
    def records(self) -> bool:
        """Whether steps are recorded, and the average is taken within them."""
        return self._recorded is not None

    @property
    def augmentation_generator(self) -> torch.Generator | None:
        """What the step draws its augmentation from, where a data module leaves that to it."""
        return self._recorded.generator if self._augments and self._recorded else None

    def _data(self) -> Any:
        return getattr(self.trainer, "datamodule", None)

    def _average(self) -> EMA | None:
        found = (one for one in self.trainer.callbacks if isinstance(one, EMA))  # type: ignore[attr-defined]
        return next(found, None)

    def record_anew(self) -> None:
        """Forgets what was recorded of a step: something else is trained from here on."""
        if self._recorded is not None:
            self._recorded.forget()

    def _make_recorded(self) -> RecordedStep | None:
        """The recorded step of a fit, or None for steps as they are written.

        Raises:
            UserError: ``record`` is true, and it cannot be.
        """
        insists = self.record is True
        if self.record is False:
            return None
        if (reason := recorded_step.obstacle(self, self.trainer)) is not None:
            recorded_step.refuse(reason, insists)
            return None
        self._augments = self.automatic_optimization and hasattr(self._data(), "augmented")
        optimizers: Any = self.optimizers(use_pl_optimizer=False)
        return RecordedStep(
            self.whole_step,
            optimizers if isinstance(optimizers, list) else [optimizers],
            self.device,
            accumulates=self.trainer.accumulate_grad_batches > 1,
            insists=insists,
        )

    def check_finite(self, loss: Tensor) -> Tensor:
        """Stops the run before a loss that is not finite reaches the weights.

        Where that would wait for the device, ``watch`` finds it some steps later.
        """
        if self._late_losses is None and not torch.isfinite(loss):
            raise self._no_number(self.global_step, loss.item(), "were not changed by it")
        return loss

    def watch(self, step: int, loss: Tensor) -> None:
        """Stops the run within some steps of a loss that is not finite; it waits for none."""
        if self._late_losses is not None and (found := self._late_losses.add(step, loss)):
            raise self._no_number(*found, "have taken it")

    def _no_number(self, step: int, loss: float, fate: str) -> UserError:
        return UserError(
            f"the training loss is {loss} at step {step}: the weights {fate}, and no checkpoint "
            f"was written with it; lower model.lr ({self.lr}), warm up longer, or train in "
            "trainer.precision 32-true"
        )

    # -- Lightning's hooks -----------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        describe = getattr(getattr(self.trainer, "datamodule", None), "describe", None)
        if describe is not None and (stage == "fit" or not self.data_info):
            self.data_info = describe()

    def on_fit_start(self) -> None:
        self.train()  # Lightning would leave a loaded model in evaluation mode for the whole fit

    def on_train_start(self) -> None:
        self._logged_epoch, self._augments = None, False
        self._recorded = self._make_recorded()
        waits = self._recorded is not None or self.device.type == "cuda"
        self._late_losses = LateLosses(self.device) if waits else None

    def on_train_end(self) -> None:
        self._read_losses()
        # A graph holds memory, and no copy can be made of it.
        self._recorded = self._late_losses = None
        self._augments = False

    def on_validation_start(self) -> None:
        self._read_losses()  # before an average takes its statistics from such weights

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        if self._recorded is None or not self.automatic_optimization:  # else the step is over
            super().backward(loss, *args, **kwargs)

    def optimizer_zero_grad(
        self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer
    ) -> None:
        if self._recorded is None:
            super().optimizer_zero_grad(epoch, batch_idx, optimizer)

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None
    ) -> None:
        if self._recorded is None:
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        else:  # Lightning counts an optimizer step all the same
            optimizer_closure()

    def configure_callbacks(self) -> list[Callback]:
        # Lightning asks at every stage, and only a fit averages.
        fitting = self._trainer is None or self._trainer.state.fn == TrainerFn.FITTING
        return [EMA(self.ema_decay)] if fitting and self.ema_decay is not None else []

    def change_settings(
        self,
        *,
        optimizer: str | None = None,
        lr: float | None = None,
        weight_decay: float | None = None,
    ) -> None:
        """Gives a loaded task other settings of its optimizer than it was trained with.

        Args:
            optimizer, lr, weight_decay: None for the task's own; another optimizer than that has
                none of its ``optimizer_args``.

        Raises:
            UserError: one is out of range, or the task has optimizers of its own.
        """
        settings = {"optimizer": optimizer, "lr": lr, "weight_decay": weight_decay}
        changed: dict[str, Any] = {n: value for n, value in settings.items() if value is not None}
        if changed and type(self).make_optimizer is not Task.make_optimizer:
            raise UserError(
                f"{', '.join(changed)}: {type(self).__name__} has optimizers of its own, set "
                "by its constructor"
            )
        _check_optimizer(changed.get("lr", self.lr), changed.get("weight_decay", self.weight_decay))
        if changed.get("optimizer", self.optimizer) != self.optimizer:
            changed["optimizer_args"] = None
        for name, value in changed.items():
            setattr(self, name, value)
            self.hparams[name] = value

    def make_optimizer(self) -> torch.optim.Optimizer:
        """Makes the optimizer, without a trainer."""
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
        self.log("lr", self.trainer.optimizers[0].param_groups[0]["lr"], sync_dist=True)

    def _read_losses(self) -> None:
        if self._late_losses is not None and (found := self._late_losses.read(everything=True)):
            raise self._no_number(*found, "have taken it")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._read_losses()
        # Optimizers and averages with the weights: all that a resumed run would go on from.
        if name := not_finite({key: checkpoint.get(key) for key in RESUMED}):
            raise UserError(
                f"{name} is no longer finite at step {self.global_step}: it is not saved, and the "
                "last checkpoint is as it was; lower model.lr, warm up longer, or train in "
                "trainer.precision 32-true"
            )
        recorded_step.make_portable(checkpoint)
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
                name: metric.gathered()  # type: ignore[operator]
                for name, metric in self.training_metrics.items()
            }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.data_info = checkpoint.get("data", {})
        if self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING:
            self._random_state = checkpoint.get("random_state")
            if self.trainer.is_global_zero:  # one process has all that was gathered
                for name, state in checkpoint.get("training_metrics", {}).items():
                    self.training_metrics[name] = TrainingMean()
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
        hparams = dict(read_checkpoint(path).get("hyper_parameters", {}))
        network = hparams.pop("network", None)
        if "network" not in kwargs:
            if not network:
                raise UserError(
                    f"{path} was trained on a network that is not the zoo's: pass it, "
                    f"{cls.__name__}.load_from_checkpoint(path, network=...)"
                )
            kwargs["network"] = networks.build(network)
        kwargs = {**hparams, **kwargs}  # by their present names
        return super().load_from_checkpoint(
            path, map_location, hparams_file, strict, weights_only, **kwargs
        )


def _check_optimizer(lr: float, weight_decay: float) -> None:
    if lr <= 0:
        raise UserError(f"model.lr is {lr}: it must be positive")
    if weight_decay < 0:
        raise UserError(f"model.weight_decay is {weight_decay}: it cannot be negative")


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
    """Returns the prefix of metrics of stand-in data; ``data`` is a data module's description."""
    return f"{data['name'].lower()}/" if "instead_of" in data else ""
