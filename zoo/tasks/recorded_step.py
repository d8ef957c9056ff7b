"""A training step as one CUDA graph."""

from __future__ import annotations

import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

from zoo.errors import UserError

DEVICE = "cuda"  # the kind of device that records
WARMUP = 3  # steps as they are written before one is recorded: torch's documentation asks for them
# Hooks between a step's parts. Replayed, a step has no parts.
WITHIN = (
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_before_zero_grad",
)

Step = Callable[..., dict[str, Tensor]]


class RecordedStep:
    """Runs a training step, recorded once, by one launch.

    A small network's step is thousands of kernels, each over before the next is launched: a GPU
    waits for Python. Replayed, they follow each other without it. The first steps run as they are
    written, and so does one whose tensors have another shape, as an epoch's last batch may. Where
    gradients are accumulated there are two recordings: of a batch, and of a batch that ends with
    the optimizer's step.

    Args:
        step: takes tensors and ``ends``, and returns tensors by name. It is the whole of a step:
            forward, backward, and where ``ends`` is true clipping and the optimizers' steps.
        optimizers: what it steps. Their learning rates become tensors on the device, which
            schedulers fill in.
        device: a CUDA device.
        accumulates: whether gradients outlast a call.
        insists: raises where the step turns out to be one that cannot be recorded, in place of
            going on as it is written.

    Raises:
        UserError: an optimizer that cannot be recorded.
    """

    def __init__(
        self,
        step: Step,
        optimizers: Iterable[torch.optim.Optimizer],
        device: torch.device,
        *,
        accumulates: bool = False,
        insists: bool = False,
    ) -> None:
        self.step, self.optimizers = step, list(optimizers)
        self.accumulates, self.insists = accumulates, insists
        # What a step may draw from besides torch's own, seeded before each call.
        self.generator = torch.Generator(device)
        for optimizer in self.optimizers:
            make_capturable(optimizer, device)
        self.records = True
        self.taken: Counter[bool] = Counter()
        self.recorded: dict[bool, tuple[Sequence[Tensor], Callable[[], dict[str, Tensor]]]] = {}
        self._gradients: list[tuple[Tensor, Tensor]] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        return None  # a recording is of one place in memory: a copy of a task has none

    def __call__(self, *inputs: Tensor, ends: bool = True) -> dict[str, Tensor]:
        """What the step returns; where it was replayed, valid until the next call."""
        self.taken[ends] += 1
        if self.records and ends not in self.recorded and self.taken[ends] > WARMUP:
            own = [each.clone() for each in inputs]
            try:
                replay = capture(lambda: self.step(*own, ends=ends), self.generator)
                self.recorded[ends] = own, replay
            except RuntimeError as error:
                self.records = False
                refuse(str(error).strip().splitlines()[0], self.insists)
        if ends in self.recorded and _alike(self.recorded[ends][0], inputs):
            kept, replay = self.recorded[ends]
            for place, given in zip(kept, inputs, strict=True):
                place.copy_(given, non_blocking=True)
            outputs = replay()
        else:
            outputs = self._as_written(inputs, ends)
        self._clear(ends)
        return outputs

    def forget(self) -> None:
        """Runs steps as they are written and records anew: what is trained has changed."""
        self.recorded.clear()
        self.taken.clear()
        for optimizer in self.optimizers:
            _complete_momentum(optimizer)

    def _as_written(self, inputs: Sequence[Tensor], ends: bool) -> dict[str, Tensor]:
        for parameter, gradient in self._gradients:  # where the recordings add to them
            parameter.grad = gradient

        def run() -> dict[str, Tensor]:
            return on_side_stream(lambda: self.step(*inputs, ends=ends))

        if not self.records or self.taken[ends] != WARMUP:
            return run()
        with observed() as obstacles:
            outputs = run()
        if obstacles:
            self.records = False
            refuse(obstacles[0], self.insists)
        return outputs

    def _clear(self, ends: bool) -> None:
        """Forgets the gradients that a step has used."""
        if not self.accumulates:  # those of a recorded one live in the graph's own memory
            for optimizer in self.optimizers:
                optimizer.zero_grad(set_to_none=True)
        elif ends:
            parameters = [p for o in self.optimizers for g in o.param_groups for p in g["params"]]
            self._gradients = [(p, p.grad) for p in parameters if p.grad is not None] or (
                self._gradients
            )
            torch._foreach_zero_([gradient for _, gradient in self._gradients])


def obstacle(task: Any, trainer: Any) -> str | None:
    """Finds why a task's step cannot be recorded, as far as is known before the first step."""
    if task.device.type != DEVICE:
        return f"it runs on {task.device.type}, and only a CUDA device records"
    if trainer.world_size > 1:
        return f"{trainer.world_size} devices take part in it"
    if getattr(trainer.precision_plugin, "scaler", None) is not None:
        return "trainer.precision 16-mixed decides by a value whether the optimizer steps"
    cls = type(task)
    if _source(cls, "training_step") is not _source(cls, "whole_step"):
        return f"{cls.__name__} has a training_step of its own, not training_values"
    for one in (task, *trainer.callbacks):
        if isinstance(one, GradientAccumulationScheduler):
            return "GradientAccumulationScheduler changes what a step is"
        for hook in WITHIN:
            if is_overridden(hook, one):
                return f"{type(one).__name__}.{hook} is called within it"
    for optimizer in trainer.optimizers:
        if not _can_be_recorded(optimizer):
            return f"{type(optimizer).__name__} cannot be: choose sgd, adam, adamw or muon"
    return None


def refuse(reason: str, insists: bool) -> None:
    """Logs why steps run as they are written, without recording.

    Raises:
        UserError: they were to be recorded in any case.
    """
    if insists:
        raise UserError(
            f"model.record true: the step cannot be recorded: {reason}; or set model.record auto"
        )
    rank_zero_info(f"model.record: the step is not recorded: {reason}")


def capture(
    step: Callable[[], dict[str, Tensor]], generator: torch.Generator
) -> Callable[[], dict[str, Tensor]]:
    """Records a step on tensors that are to stay where they are; what is returned repeats it.

    Raises:
        RuntimeError: CUDA refuses to.
    """
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(generator)
    # Autocast would keep the half precision of a weight as it was before recording. And another
    # thread may use the device meanwhile: a loader's, to pin memory.
    with (
        torch.autocast(
            "cuda",
            torch.get_autocast_dtype("cuda"),
            torch.is_autocast_enabled("cuda"),
            cache_enabled=False,
        ),
        torch.cuda.graph(graph, capture_error_mode="thread_local"),
    ):
        outputs = step()

    def replay() -> dict[str, Tensor]:
        graph.replay()
        return outputs

    return replay


def on_side_stream(step: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The step on a stream of its own, as recording will have it."""
    current, own = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
    own.wait_stream(current)
    with torch.cuda.stream(own):
        outputs = step()
    current.wait_stream(own)
    return outputs


@contextmanager
def observed() -> Iterator[list[str]]:
    """Finds out of a step why a recording of it would not be the step.

    Yields:
        Where it ends, the reasons that were found.
    """
    reasons: list[str] = []
    drawn = host_draws()
    with waiting(reasons):
        yield reasons
    if host_draws() != drawn:
        reasons.append("it draws random numbers on the CPU")


def host_draws() -> Any:
    """Returns the state of the CPU's random generators that a step may draw from."""
    _, numbers, *rest = _numpy_state()
    return torch.get_rng_state().tolist(), random.getstate(), numbers.tolist(), rest


def _numpy_state() -> Any:
    return np.random.get_state()  # noqa: NPY002 other people's code draws from it


@contextmanager
def waiting(reasons: list[str]) -> Iterator[None]:
    """Notices whether what runs within waits for the device."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)
    for one in caught:
        if "synchronizing CUDA operation" in str(one.message):
            reasons.append("it waits for a value of the device")
        else:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)


def _source(cls: type, method: str) -> type:
    """The class that a method is written in."""
    return next(one for one in cls.__mro__ if method in vars(one))


def _alike(kept: Sequence[Tensor], given: Sequence[Tensor]) -> bool:
    return [(one.shape, one.dtype) for one in kept] == [(one.shape, one.dtype) for one in given]


def _can_be_recorded(optimizer: torch.optim.Optimizer) -> bool:
    if isinstance(optimizer, torch.optim.Adagrad):  # whose fused step is a CPU's alone
        return False
    return all("fused" in group or "capturable" in group for group in optimizer.param_groups)


def make_capturable(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Moves to the device what an optimizer would read on the CPU: learning rates and counts.

    Torch's own step by their fused kernels, which take a tensor for a learning rate; the others
    have ``capturable``.

    Raises:
        UserError: it has no such mode.
    """
    if not _can_be_recorded(optimizer):
        raise UserError(
            f"model.record: {type(optimizer).__name__} cannot be recorded: choose sgd, adam, adamw "
            "or muon, or set model.record false"
        )
    for group in optimizer.param_groups:
        group.update({name: True for name in ("fused", "capturable") if name in group})
        if "fused" in group:
            group["foreach"] = False
        group["lr"] = torch.tensor(float(group["lr"]), device=device)
    for state in optimizer.state.values():
        if "step" in state:
            state["step"] = torch.tensor(float(state["step"]), device=device)
    _complete_momentum(optimizer)
    # torch warns of a step that is not recorded; the first ones are not, on purpose.
    optimizer._warned_capturable_if_run_uncaptured = True


def _complete_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Gives parameters that were frozen until now a momentum of zero.

    torch's fused SGD takes momentum of all parameters of a group, or of none.
    """
    for group in optimizer.param_groups:
        if not isinstance(optimizer, torch.optim.SGD) or not group["momentum"]:
            continue
        states = [optimizer.state.get(parameter, {}) for parameter in group["params"]]
        if all(state.get("momentum_buffer") is None for state in states):
            continue
        for parameter, state in zip(group["params"], states, strict=True):
            if state.get("momentum_buffer") is None:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def make_portable(checkpoint: dict[str, Any]) -> None:
    """Undoes ``make_capturable`` in a checkpoint, which then loads anywhere."""
    for state in checkpoint.get("optimizer_states", []):
        for group in state["param_groups"]:
            if isinstance(group["lr"], Tensor):
                group["lr"] = float(group["lr"])
                if "capturable" in group:
                    group["capturable"] = False
                if "fused" in group:
                    group["fused"] = group["foreach"] = None
    for state in checkpoint.get("lr_schedulers", []):
        state["_last_lr"] = [float(rate) for rate in state["_last_lr"]]
