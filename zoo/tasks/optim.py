"""Optimisers and learning-rate schedules, by name."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import timm.optim
import timm.optim.muon
import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw
from torch.optim.lr_scheduler import LambdaLR

from zoo.devices import imitates_bfloat16
from zoo.errors import UserError
from zoo.recipes import nearest

Schedule = Literal["linear", "cosine", "trapezoid", "constant"]

COOLDOWN = 0.3  # the part of a trapezoid in which the learning rate falls


def make_optimizer(
    network: nn.Module,
    name: str,
    lr: float,
    weight_decay: float,
    momentum: float,
    extra: dict[str, Any] | None = None,
) -> torch.optim.Optimizer:
    """Any optimiser of timm's factory, never decaying norms' weights or biases.

    Frozen parameters are left out. ``muon`` orthogonalises the update of every matrix and filter
    and steps the rest by AdamW: vectors, what the network would not have decayed
    (``no_weight_decay()``), and its tables (``fallback_parameters()``).

    Args:
        network: its trainable parameters are optimised.
        name: ``sgd`` (Nesterov), ``adamw``, ``muon``, or another of timm's.
        lr: peak learning rate.
        weight_decay: of matrices and filters only.
        momentum: where the optimiser has one.
        extra: further arguments of the optimiser.

    Raises:
        UserError: an unknown optimiser or argument, a value that it refuses, or nothing to train.
    """
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise UserError("every parameter of the network is frozen: there is nothing to train")
    tables: set[str] = getattr(network, "fallback_parameters", set)()

    def create(module: nn.Module) -> torch.optim.Optimizer:
        return timm.optim.create_optimizer_v2(
            module,
            opt=name,
            lr=lr,
            weight_decay=weight_decay,
            momentum=momentum,
            filter_bias_and_bn=True,
            **{"fallback_list": sorted(tables), "fallback_no_weight_decay": True, **(extra or {})},
        )

    try:
        optimizer = create(network)
    except (ValueError, KeyError, AssertionError) as error:
        known = [str(optimizer) for optimizer in timm.optim.list_optimizers()]
        if name in known and isinstance(error, ValueError):
            raise UserError(f"model.optimizer {name}: {error}") from error
        if name in known:
            raise
        hint = nearest(name, known)
        raise UserError(f"model.optimizer: no optimiser named {name!r}{hint}") from None
    except TypeError as error:
        raise UserError(f"model.optimizer_args: {error}") from None
    if extra:
        _rehearse(create, extra)
    device = next(network.parameters()).device.type
    if type(optimizer) is timm.optim.Muon:
        optimizer.__class__ = Muon  # timm's factory knows its own classes only
    if isinstance(optimizer, Muon) and imitates_bfloat16(device):
        optimizer.dtype = torch.float32
    return optimizer


def _rehearse(create: Callable[[nn.Module], torch.optim.Optimizer], extra: dict[str, Any]) -> None:
    """A step of a small module: some values are read by nothing before an optimiser's first step.

    Raises:
        UserError: such a value is of no use.
    """
    small = nn.Module()
    small.weight, small.bias = nn.Parameter(torch.ones(8, 8)), nn.Parameter(torch.ones(8))
    for parameter in small.parameters():
        parameter.grad = torch.ones_like(parameter)
    try:
        with torch.random.fork_rng(devices=[]):  # some draw numbers, and a seed is a seed
            create(small).step()
    except RuntimeError:
        pass  # of what a step asks for beside values: adahessian's second derivatives
    except (ValueError, KeyError, AssertionError, TypeError) as error:
        raise UserError(f"model.optimizer_args {extra}: {error}") from None


class Muon(timm.optim.Muon):
    """timm's Muon, with two of its pieces exchanged for faster ones to the same end.

    On a CPU its fallback AdamW passes over memory many times a step, and torch's fused one once.
    And its Newton-Schulz iterations are in bfloat16, which takes 9 to 46 times as long as float32
    where it is only imitated (tests/benchmarks/precision.py).

    Attributes:
        dtype: of the Newton-Schulz iterations.
    """

    dtype: torch.dtype = torch.bfloat16

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        # Neither Muon nor what it calls takes either as an argument.
        pieces = timm.optim.muon
        theirs = pieces.zeropower_via_newtonschulz, pieces.adamw
        pieces.zeropower_via_newtonschulz = functools.partial(theirs[0], dtype=self.dtype)
        pieces.adamw = functools.partial(_fused_adamw, theirs[1])
        try:
            return super().step(closure)  # type: ignore[no-untyped-call]
        finally:
            pieces.zeropower_via_newtonschulz, pieces.adamw = theirs


def _fused_adamw(
    theirs: Callable[..., None],
    parameters: list[Tensor],
    grads: list[Tensor],
    means: list[Tensor],
    squares: list[Tensor],
    largest: list[Tensor],
    counts: list[Tensor],
    **options: Any,
) -> None:
    """What ``timm.optim.muon`` asks of timm's AdamW: torch's on a CPU, and else timm's own."""
    states = parameters, grads, means, squares, largest, counts
    if any(parameter.device.type != "cpu" for parameter in parameters):
        theirs(*states, **options)  # it takes all of them at once there
        return
    shared = ("amsgrad", "beta1", "beta2", "lr", "weight_decay", "eps", "maximize", "capturable")
    adamw(*states, fused=True, **{name: options[name] for name in shared})


def make_schedule(
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    warmup: float,
    total_steps: int,
    final: float = 0.0,
) -> LambdaLR:
    """Linear warm-up to the peak, then a line, half a cosine or a plateau and a line, step by step.

    Args:
        optimizer: its learning rates are the peaks.
        schedule: ``linear``, ``cosine`` (Loshchilov & Hutter 2017, section 3), ``trapezoid``
            (constant, and linear over the last three tenths: Hägele et al. 2024, section 3) or
            ``constant``.
        warmup: part of the steps, between 0 and 1, or their number from 1 up.
        total_steps: optimiser steps of the whole run.
        final: what the schedule ends at, as a share of the peak.
    """
    warmup_steps = round(warmup * total_steps) if warmup < 1 else round(warmup)
    warmup_steps = min(warmup_steps, total_steps)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        # The last step still moves: the end is reached one step after it.
        progress = min((step - warmup_steps) / max(1, total_steps - warmup_steps), 1.0)
        if schedule == "linear":
            return final + (1 - final) * (1 - progress)
        if schedule == "trapezoid":
            return final + (1 - final) * min((1 - progress) / COOLDOWN, 1.0)
        if schedule == "cosine":
            return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))
        return 1.0

    return LambdaLR(optimizer, factor)
