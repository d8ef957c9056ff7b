"""What every task shares: a network, its optimizer, its average, and a faithful checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from zoo import networks
from zoo.core.lightning_file import read_checkpoint
from zoo.errors import UserError
from zoo.tasks.averaging import EMA
from zoo.tasks.optim import make_optimizer
from zoo.tasks.schedule import Schedule, make_schedule


class Task(LightningModule):
    """How a network learns, whatever its architecture.

    ``hparams`` hold JSON values only, the network's description among them, so that a ``.ckpt``
    loads with ``weights_only=True``, in user code, without the command line. A fit begins in
    training mode; resuming restores the random state of every process.
    """

    network: nn.Module
    monitor = "val/loss"  # what the best checkpoint is best in,
    alternates = False  # whether a step leaves some parameters without a gradient
    headline = "val/loss"  # what a card states first
    monitor_mode = "min"  # and whether less or more of it is better

    def __init__(
        self,
        network: nn.Module,
        optimizer: str,
        lr: float,
        weight_decay: float,
        momentum: float,
        optimizer_args: dict[str, Any] | None,
        schedule: Schedule,
        warmup: float,
        ema_decay: float | None,
        channels_last: bool,
        compile: bool,
    ) -> None:
        super().__init__()
        if lr <= 0:
            raise UserError(f"model.lr is {lr}: it must be positive")
        if weight_decay < 0:
            raise UserError(f"model.weight_decay is {weight_decay}: it cannot be negative")
        if warmup < 0:
            raise UserError(f"model.warmup is {warmup}: it cannot be negative")
        if ema_decay is not None and not 0 < ema_decay < 1:
            raise UserError(f"model.ema_decay is {ema_decay}: it must lie between 0 and 1, or null")
        self.optimizer, self.lr, self.weight_decay = optimizer, lr, weight_decay
        self.momentum, self.optimizer_args = momentum, optimizer_args
        self.schedule, self.warmup, self.ema_decay = schedule, warmup, ema_decay
        self.final_lr = 0.0  # what the schedule ends at, as a share of the peak
        self.channels_last = channels_last and not _overruns(network)
        self.network = network
        if self.channels_last:
            self.network.to(memory_format=torch.channels_last)
        if compile:
            self.network.compile()  # in place: the names of the state dict stay as they are
        self.data_info: dict[
            str, Any
        ] = {}  # what the network was trained on, as its data module says
        self._random_state: list[dict[str, Tensor]] | None = None

    def remember(self, arguments: Mapping[str, Any]) -> None:
        """Keeps a constructor's ``locals()`` as hyper-parameters, the network by description."""
        kept = {
            name: value
            for name, value in arguments.items()
            if name not in ("self", "network") and not name.startswith("__")
        }
        kept["network"] = networks.describe(self.network)
        self.save_hyperparameters(kept)

    # -- input and output ------------------------------------------------------------------------

    def example_inputs(self, data: Any) -> tuple[Tensor, ...]:
        """What the network's forward takes, of the shapes of a data module; needs no data."""
        return (data.example_input(),)

    def inputs_of(self, batch: Any) -> Any:
        """The network's input within a batch."""
        return batch[0]

    def statistics_forward(self, batch: Any) -> None:
        """A forward by which BatchNorm of averaged weights learns its statistics."""
        self(self.inputs_of(batch))

    def averaged(self) -> nn.Module | None:
        """The part whose weights are averaged; None for all of it."""
        return None

    def forward(self, x: Tensor) -> Tensor:
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

    def report(self, name: str, value: Any, **options: Any) -> None:
        """Logs a metric; one of stand-in data is named for them, ``digits/val/accuracy``."""
        self.log(metric_prefix(self.data_info) + name, value, **options)

    def check_finite(self, loss: Tensor, applied: bool = False) -> Tensor:
        """Stops the run before a loss that is no number reaches the weights, or once it has."""
        if not torch.isfinite(loss):
            fate = "have taken it" if applied else "were not changed by it"
            raise UserError(
                f"the training loss is {loss.item()} at step {self.global_step}: the weights "
                f"{fate} and the last checkpoint is intact; lower model.lr "
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
        self.report("lr", self.trainer.optimizers[0].param_groups[0]["lr"])

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

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.data_info = checkpoint.get("data", {})
        if self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING:
            self._random_state = checkpoint.get("random_state")

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
