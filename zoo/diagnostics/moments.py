"""What the normalizations of a model see, however they are called."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.overrides import TorchFunctionMode

from zoo.diagnostics.trace.graph import unknown_statistics
from zoo.diagnostics.trace.operations import (
    base_name,
    bind_normalization,
    has_single_values,
    run_normalization,
    run_single_values,
    tensors_in,
)
from zoo.diagnostics.trace.recorder import record
from zoo.diagnostics.trace.snapshot import (
    begin_training,
    eagerly,
    keeps_running_statistics,
    paths,
    tensors_of,
    untouched,
    unwrapped,
)
from zoo.errors import UserError


class PooledMoments:
    """Mean and variance of each channel over every value seen.

    Pooled, not averaged over batches: the spread of the batch means belongs to the variance.

    Args:
        per_sample: averages the moments of single samples instead, as InstanceNorm does.
    """

    def __init__(self, per_sample: bool = False) -> None:
        self.per_sample = per_sample
        self.count = 0.0
        self.total: Tensor | None = None
        self.squares: Tensor | None = None

    def update(self, x: Tensor, axis: int = 1) -> None:
        """Adds a normalization's input.

        Args:
            x: (B, C) or (B, C, …), in training and in evaluation.
            axis: of the channels.
        """
        # A batch's own moments in single precision, about its own mean; the pooling in double.
        # Two means: `torch.var_mean` takes several times as long on a CPU.
        values = x.detach().float()
        kept = (0, axis) if self.per_sample else (axis,)
        others = [dimension for dimension in range(x.ndim) if dimension not in kept]
        center = values.mean(dim=others, keepdim=True)
        variance = (values - center).square_().mean(dim=others).double()
        if self.per_sample:
            mean = center.flatten(1).double().sum(0)
            positions = x[0, 0].numel()
            squares = variance.sum(0) * positions / max(1, positions - 1)
            total, count = mean, len(x)
        else:
            mean = center.flatten().double()
            count = x.numel() // x.shape[axis]
            total, squares = mean * count, (variance + mean.square()) * count
        self.total = total if self.total is None else self.total + total
        self.squares = squares if self.squares is None else self.squares + squares
        self.count += count

    def reduce(self, correction: int = 1) -> tuple[Tensor, Tensor]:
        """Mean and variance (C,), over all processes where there are several.

        Args:
            correction: 1 for the unbiased variance, which BatchNorm remembers; 0 for that of the
                values themselves, by which it normalizes in training. InstanceNorm's is unbiased.
        """
        assert self.total is not None
        assert self.squares is not None
        count = torch.full_like(self.total[:1], self.count)
        pooled = torch.cat([self.total, self.squares, count])
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(pooled)
        channels = len(self.total)
        count = pooled[-1]
        mean = pooled[:channels] / count
        if self.per_sample:
            return mean, pooled[channels:-1] / count
        variance = pooled[channels:-1] / count - mean.square()
        return mean, variance.clamp_min(0) * count / (count - correction)


@dataclass(eq=False)
class RunningStatistics:
    """One running mean and variance, and the normalization that uses them."""

    path: str  # of the module that holds them
    module: nn.Module
    names: tuple[str, str]  # of its buffers, mean and variance
    eps: float
    per_sample: bool = False  # InstanceNorm: averages over samples
    by_hand: bool = False  # the module normalizes without any of torch's functions

    @property
    def mean(self) -> Tensor:
        return self._buffer(0)

    @property
    def variance(self) -> Tensor:
        return self._buffer(1)

    def _buffer(self, which: int) -> Tensor:
        value = getattr(self.module, self.names[which])
        assert isinstance(value, Tensor)
        return value

    @property
    def learned(self) -> bool:
        """Whether anything has been learned: they no longer are what they begin as."""
        return bool((self.mean != 0).any() or (self.variance != 1).any())

    def moments(self) -> PooledMoments:
        return PooledMoments(self.per_sample)

    @torch.no_grad()
    def remember(self, mean: Tensor, variance: Tensor) -> None:
        """Writes both, in place."""
        self.mean.copy_(mean)
        self.variance.copy_(variance)

    def axis(self, x: Tensor) -> int | None:
        """The dimension of an input that holds the channels; None where there is none."""
        channels = self.variance.numel()
        if not self.by_hand or (x.ndim > 1 and x.shape[1] == channels):
            return 1
        return x.ndim - 1 if x.ndim and x.shape[-1] == channels else None


def _whole(x: Tensor) -> Tensor:
    """An input with the dimension that ``vmap`` hides, as part of the batch."""
    functorch = torch._C._functorch
    while functorch.is_batchedtensor(x):
        x = functorch.get_unwrapped(x).movedim(functorch.maybe_get_bdim(x), 0).flatten(0, 1)
    return unwrapped(x)


def _copied(buffers: dict[str, Tensor | None]) -> dict[str, tuple[Tensor, Tensor]]:
    return {name: (one, one.clone()) for name, one in buffers.items() if one is not None}


See = Callable[[RunningStatistics, Tensor, int], None]


class Normalizations(TorchFunctionMode):
    """Sees the input of every normalization with running statistics of one model.

    Modules, ``.forward()``, functional calls and modules that normalize by hand are seen alike: a
    normalization is known by the buffers that it is given, not by who calls it. Entering the mode
    observes; ``watching`` says what is done with what is seen.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.paths = paths(model)
        self.known: dict[int, RunningStatistics] = {}  # id of the buffer of the variance → it
        self.live: dict[RunningStatistics, None] = {}  # learned when they ran in training mode
        self.frozen: set[RunningStatistics] = set()
        self.ran: set[RunningStatistics] = set()
        self.calls = 0  # seen so far of any
        self.see: See | None = None
        self.by_batch: bool | None = None  # None: as it is called
        self.among: Collection[RunningStatistics] | None = None  # None: all
        self.holders: dict[int, tuple[nn.Module, str]] = {}
        for module in model.modules():
            for name, buffer in module.named_buffers("", False):
                self.holders[id(buffer)] = module, name

    @contextmanager
    def watching(
        self,
        see: See | None = None,
        by_batch: bool | None = None,
        among: Collection[RunningStatistics] | None = None,
    ) -> Iterator[None]:
        """Shows inputs to ``see`` (statistics, input, axis of its channels) while it lasts.

        Args:
            see: called before each normalization.
            by_batch: true normalizes by the batch and remembers nothing, false by the running
                statistics, whatever the modes say; by default as it is called.
            among: which ones ``by_batch`` is for; by default all.
        """
        self.see, self.by_batch, self.among = see, by_batch, among
        wrapped = [
            (module, module.__dict__.get("forward"))
            for module in self.model.modules()
            if self._may_be_by_hand(module)
        ]
        forced = [s for s in among or () if s.by_hand and by_batch]
        kept = [(s.module, s.module.training, _copied(s.module._buffers)) for s in forced]
        for module, _ in wrapped:
            module.__dict__["forward"] = self._by_hand(module, module.forward)
        for statistics in forced:
            statistics.module.training = True  # of this module alone
        try:
            with self:
                yield
        finally:
            for module, own in wrapped:  # of the instance, where it has one
                del module.__dict__["forward"]
                if own is not None:
                    module.__dict__["forward"] = own
            for module, mode, buffers in kept:
                module.training = mode
                for name, (buffer, value) in buffers.items():
                    with torch.no_grad():
                        buffer.copy_(value)
                    module._buffers[name] = buffer
            self.see, self.by_batch, self.among = None, None, None

    def refuse_unknown(self, tool: str, run: Callable[[Any], Any], batch: Any) -> None:
        """Refuses a model with running statistics that were not seen when it ran in training mode.

        Args:
            tool: who refuses.
            run: runs the model on a batch.
            batch: what ``run`` takes.

        Raises:
            UserError: its own code keeps running statistics in tensors of other names, or
                elsewhere than in the module that normalizes.
        """
        seen = {id(b) for norm in self.ran for b in norm.module._buffers.values()}
        own = {id(parameter) for parameter in self.model.parameters() if parameter.requires_grad}
        others = [
            path
            for path, tensor in tensors_of(self.model).items()
            if id(tensor) not in seen | own and tensor.is_floating_point()
        ]
        if not others:
            return
        training, evaluation = (
            record(self.model, (batch,), mode=mode, run=run) for mode in ("training", "evaluation")
        )
        if found := unknown_statistics(training, evaluation):
            raise UserError(
                f"{tool}: {', '.join(found[:5])} are running statistics by the model's own code, "
                "which cannot be measured: keep them as running_mean and running_var of the module "
                "that normalizes, or call F.batch_norm with them"
            )

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        call = bind_normalization(func, args, kwargs)
        if call is None or call["running_var"] is None:
            return func(*args, **kwargs)
        statistics = self._statistics(func, call)
        if statistics is None:
            return func(*args, **kwargs)
        self.calls += 1
        training = bool(call["training"])
        self._note(statistics, training)
        if self.see is not None:
            self.see(statistics, _whole(call["input"]), 1)
        changes: dict[str, Any] = {}
        if self.by_batch is not None and (self.among is None or statistics in self.among):
            training = self.by_batch
            changes["training"] = training
            if training:
                changes |= {"running_mean": None, "running_var": None}
        if training and not statistics.per_sample and has_single_values(call):
            return run_single_values(func, args, kwargs, call)
        return run_normalization(func, args, kwargs, **changes)

    def _statistics(self, func: Any, call: dict[str, Any]) -> RunningStatistics | None:
        variance, mean = call["running_var"], call["running_mean"]
        if id(variance) in self.known:
            return self.known[id(variance)]
        held, other = self.holders.get(id(variance)), self.holders.get(id(mean))
        if held is None or other is None or held[0] is not other[0]:
            return None  # statistics that the model does not hold as buffers
        module, name = held
        found = RunningStatistics(
            self.paths[id(module)],
            module,
            (other[1], name),
            float(call["eps"]),
            per_sample=base_name(func) == "instance_norm",
        )
        self.known[id(variance)] = found
        return found

    def _note(self, statistics: RunningStatistics, training: bool) -> None:
        self.ran.add(statistics)
        if training:
            self.live[statistics] = None
            self.frozen.discard(statistics)
        elif statistics not in self.live:
            self.frozen.add(statistics)

    @staticmethod
    def _may_be_by_hand(module: nn.Module) -> bool:
        """Whether a module keeps statistics and its forward is not torch's own."""
        held = module._buffers if not isinstance(module, torch.jit.ScriptModule) else {}
        if held.get("running_mean") is None or held.get("running_var") is None:
            return False
        return type(module).forward not in (_BatchNorm.forward, _InstanceNorm.forward)

    def _by_hand(self, module: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(forward)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            before, calls = module._buffers["running_var"], self.calls
            assert before is not None
            value = before.clone()
            given = [tensor.clone() for tensor in tensors_in((args, kwargs))[:1]]
            result = forward(*args, **kwargs)
            after = module._buffers["running_var"]
            if self.calls > calls or not given or after is None:
                return result  # it calls one of torch's
            statistics = self.known.get(id(before))
            if statistics is None or not statistics.by_hand:
                names = ("running_mean", "running_var")
                eps = float(getattr(module, "eps", 1e-5))
                path = self.paths[id(module)]
                statistics = RunningStatistics(path, module, names, eps, by_hand=True)
            self.known[id(before)] = self.known[id(after)] = statistics
            moved = after.is_meta or not torch.equal(after, value)
            self._note(statistics, moved)
            axis = statistics.axis(given[0])
            if self.see is not None and axis is not None:
                self.see(statistics, given[0], axis)
            return result

        return wrapped


def live_statistics(
    model: nn.Module, run: Callable[[Any], Any], batch: Any
) -> tuple[Normalizations, list[RunningStatistics]]:
    """The running statistics that training would move, found by one forward in training mode.

    Those that the batch does not reach go by the mode that training gives to their module. The
    model comes out untouched.

    Args:
        model: any module.
        run: runs it on a batch.
        batch: what ``run`` takes.
    """
    seen = Normalizations(model)
    with untouched(model), eagerly(model), torch.no_grad():
        begin_training(model)
        with seen.watching():
            run(batch)
        reached = {id(s.module) for s in (*seen.live, *seen.frozen)}
        waiting = [
            module
            for module in model.modules()
            if keeps_running_statistics(module) and module.training and id(module) not in reached
        ]
    for module in waiting:
        held = getattr(module, "_buffers", {})
        if held.get("running_mean") is None or isinstance(module, torch.jit.ScriptModule):
            continue
        key = id(held["running_var"])
        seen.known[key] = RunningStatistics(
            seen.paths[id(module)],
            module,
            ("running_mean", "running_var"),
            float(getattr(module, "eps", 1e-5)),
            per_sample=isinstance(module, _InstanceNorm),
            by_hand=seen._may_be_by_hand(module) and not isinstance(module, _BatchNorm),
        )
        seen.live[seen.known[key]] = None
    return seen, list(seen.live)
