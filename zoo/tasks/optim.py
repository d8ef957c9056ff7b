"""Optimizers and learning-rate schedules, by name."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import timm.optim
import timm.optim.muon
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.adamw import adamw

from zoo.core.devices import imitates_bfloat16
from zoo.core.text import nearest
from zoo.errors import UserError


def make_optimizer(
    network: nn.Module,
    name: str,
    lr: float,
    weight_decay: float,
    momentum: float,
    extra: dict[str, Any] | None = None,
) -> torch.optim.Optimizer:
    """Any optimizer of timm's factory, never decaying norms' weights or biases.

    Frozen parameters are left out. ``muon`` orthogonalizes the update of every matrix and filter
    and steps the rest by AdamW: vectors, what the network would not have decayed
    (``no_weight_decay()``), and its tables (``fallback_parameters()``).

    Args:
        network: its trainable parameters are optimized.
        name: ``sgd`` (Nesterov), ``adamw``, ``muon``, or another of timm's.
        lr: peak learning rate.
        weight_decay: of matrices and filters only.
        momentum: where the optimizer has one.
        extra: further arguments of the optimizer.

    Raises:
        UserError: an unknown optimizer or argument, a value that it refuses, or nothing to train.
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
        raise UserError(f"model.optimizer: no optimizer named {name!r}{hint}") from None
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
        pass  # of what a step asks for beside values: adahessian's second derivatives
    except (ValueError, KeyError, AssertionError, TypeError) as error:
        raise UserError(f"model.optimizer_args {extra}: {error}") from None


class Muon(timm.optim.Muon):
    """timm's Muon, with pieces of it exchanged for faster ones to the same end.

    On a CPU it steps all matrices of a shape together, in float32 (``_muon``), and its fallback
    AdamW by torch's fused kernel, which passes over memory once. How much that gains is measured by
    tests/benchmarks/optimizer_step.py. What is left to timm iterates in bfloat16, but in float32
    where bfloat16 is only imitated.

    Attributes:
        dtype: of the Newton-Schulz iterations that are left to timm.
    """

    dtype: torch.dtype = torch.bfloat16

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        # None of them is an argument of Muon or of what it calls.
        pieces = timm.optim.muon
        theirs = pieces.zeropower_via_newtonschulz, pieces.muon, pieces.adamw
        pieces.zeropower_via_newtonschulz = functools.partial(theirs[0], dtype=self.dtype)
        pieces.muon = functools.partial(_muon, theirs[1])
        pieces.adamw = functools.partial(_fused_adamw, theirs[2])
        try:
            return super().step(closure)  # type: ignore[no-untyped-call]
        finally:
            pieces.zeropower_via_newtonschulz, pieces.muon, pieces.adamw = theirs


def _muon(
    theirs: Callable[..., None],
    parameters: list[Tensor],
    grads: list[Tensor],
    momenta: list[Tensor],
    **options: Any,
) -> None:
    """What ``timm.optim.muon`` asks of its Muon: on a CPU by shapes, and else timm's own.

    timm's takes one matrix after another, and small ones take longer to call than to compute.
    """
    plain = all(each.device.type == "cpu" and not isinstance(each, DTensor) for each in parameters)
    if not plain or options["conv_mode"] != "flatten" or options["scale_eps"]:
        theirs(parameters, grads, momenta, **options)
        return
    pieces, lr, momentum = timm.optim.muon, options["lr"], options["momentum"]
    coefficients = pieces.resolve_ns_coefficients(options["ns_coefficients"], pieces._COEFFICIENTS)
    if options["weight_decay"]:
        torch._foreach_mul_(parameters, 1 - lr * options["weight_decay"])
    torch._foreach_lerp_(momenta, grads, 1 - momentum)
    updates = torch._foreach_lerp(grads, momenta, momentum) if options["nesterov"] else momenta
    shapes: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
    for parameter, update in zip(parameters, updates, strict=True):
        if parameter.ndim == 4 and parameter.is_contiguous(memory_format=torch.channels_last):
            # As it lies in memory: whatever the order of a matrix's columns, the step is the same.
            parameter, update = parameter.permute(0, 2, 3, 1), update.permute(0, 2, 3, 1)
        matrix = update.flatten(1)
        shapes.setdefault(matrix.shape, []).append((parameter, matrix))
    for shape, pairs in shapes.items():
        tall = shape[0] > shape[1]
        matrices = torch.stack([matrix.mT if tall else matrix for _, matrix in pairs])
        steps = orthogonalize(
            matrices, options["ns_steps"], coefficients, options["eps"], options["safety_factor"]
        )
        adjust = options["adjust_lr_fn"]
        scale = pieces.get_lr_scale(shape, adjust) if adjust else 1.0
        for (parameter, _), step in zip(pairs, steps.mT if tall else steps, strict=True):
            parameter.add_(step.reshape(parameter.shape), alpha=-lr * scale)


def orthogonalize(
    matrices: Tensor,
    steps: int,
    coefficients: list[tuple[float, float, float]],
    eps: float = 1e-7,
    safety_factor: float = 1.0,
) -> Tensor:
    """Newton-Schulz iterations towards the nearest orthogonal matrices, of many at once.

    X ← P X with P = a I + b A + c A² and A = X Xᵀ, as Muon has it (Jordan et al., "Muon", 2024). A
    is small where X is wide, and A ← P A P needs no X: so only A is iterated, and X multiplied
    once, by the product of all P. Of 96 × 864 that is two fifths of the work.

    Args:
        matrices: (B, M, N) with M ≤ N.
        steps: iterations.
        coefficients: a, b and c of each; the last ones serve all further steps.
        eps: the least norm that a matrix is divided by.
        safety_factor: multiplies the norm.

    Returns:
        (B, M, N), float32 whatever precision is given or autocast to.
    """
    count = len(coefficients)
    more = coefficients[-1:] * (steps - count) if steps > count else []
    chosen = [*coefficients[:steps], *more]
    with torch.autocast(matrices.device.type, enabled=False):
        x = matrices.float()
        gram = x @ x.mT
        norm = gram.diagonal(dim1=1, dim2=2).sum(1).sqrt() * safety_factor
        norm = norm.clamp(min=eps)[:, None, None]
        gram = gram / norm.square()
        product = torch.eye(x.shape[1], device=x.device).expand_as(gram)
        for index, (a, b, c) in enumerate(chosen):
            factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
            factor.diagonal(dim1=1, dim2=2).add_(a)
            product = factor @ product if index else factor
            if index + 1 < len(chosen):
                gram = factor @ gram @ factor
        return (product / norm) @ x


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
