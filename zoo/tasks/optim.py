"""Optimizers, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm.optim
import torch
from torch import nn

from zoo.core.text import nearest
from zoo.errors import UserError
from zoo.tasks.muon import Muon


def make_optimizer(
    network: nn.Module,
    name: str,
    lr: float,
    weight_decay: float,
    momentum: float,
    extra: dict[str, Any] | None = None,
    layer_decay: float | None = None,
) -> torch.optim.Optimizer:
    """Makes any optimizer of timm's factory; it never decays norms' weights or biases.

    Frozen parameters are left out. ``muon`` orthogonalizes the update of every matrix and filter
    and steps the rest by AdamW: vectors, what the network would not have decayed
    (``no_weight_decay()``), and its tables (``fallback_parameters()``).

    Args:
        network: its trainable parameters are optimized.
        name: ``sgd`` (Nesterov), ``adamw``, ``muon``, or another of timm's.
        lr: peak learning rate.
        weight_decay: weight decay of matrices and filters only.
        momentum: where the optimizer has one.
        extra: further arguments of the optimizer.
        layer_decay: factor of the learning rate from each layer to the one before it, by the
            network's ``group_matcher()`` (Clark et al., ELECTRA, ICLR 2020); None for one rate.

    Raises:
        UserError: an unknown optimizer or argument, a value that it refuses, or nothing to train.
    """
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise UserError("every parameter of the network is frozen: there is nothing to train")
    tables: set[str] = getattr(network, "fallback_parameters", set)()

    if layer_decay is not None and not 0 < layer_decay <= 1:
        raise UserError(f"layer_decay is {layer_decay}: it must be above 0 and at most 1")
    if layer_decay is not None and not hasattr(network, "group_matcher"):
        raise UserError(
            f"layer_decay: {type(network).__name__} has no group_matcher(), which gives the order "
            "of its layers"
        )

    def create(module: nn.Module) -> torch.optim.Optimizer:
        options: dict[str, Any] = {
            "no_weight_decay_list": getattr(module, "no_weight_decay", set)(),
            "fallback_list": tables,
            "fallback_no_weight_decay": True,
        }
        if layer_decay is None or module is not network:
            groups = timm.optim.param_groups_weight_decay(module, weight_decay, **options)
        else:
            groups = timm.optim.param_groups_layer_decay(
                module, weight_decay, layer_decay=layer_decay, **options
            )
            for group in groups:  # timm's own schedules would apply the scale
                group["lr"] = lr * group.pop("lr_scale")
        if name == "muon":
            return Muon(groups, lr=lr, momentum=momentum, **(extra or {}))
        return timm.optim.create_optimizer_v2(
            groups, opt=name, lr=lr, weight_decay=0.0, momentum=momentum, **(extra or {})
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
        raise UserError(f"model.optimizer: no optimizer named {name!r}{hint}") from None
    except TypeError as error:
        raise UserError(f"model.optimizer_args: {error}") from None
    if extra:
        _rehearse(create, extra)
    return optimizer


def _rehearse(create: Callable[[nn.Module], torch.optim.Optimizer], extra: dict[str, Any]) -> None:
    """A step of a small module: some values are read by nothing before an optimizer's first step.

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
        pass  # of what a step asks for in addition to values: adahessian's second derivatives
    except (ValueError, KeyError, AssertionError, TypeError) as error:
        raise UserError(f"model.optimizer_args {extra}: {error}") from None
