"""Muon: orthogonalized momentum for matrices and filters, AdamW for everything else.

Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024; the scale by which
its steps are as large as AdamW's: Liu et al., "Muon is Scalable for LLM Training", 2025, section
2.2. All matrices of a shape are stepped together: small ones take longer to call than to compute.
Settings and state have timm's names, and saved states of timm's Muon load.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim.adamw import adamw

from zoo.core.devices import imitates_bfloat16

# a, b and c of each iteration, which push small singular values up fast and end near 1 (Jordan's
# speedruns of nanoGPT); the last serve all further ones.
COEFFICIENTS = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)
EPS = 1e-7  # the least norm that a matrix is divided by
# How much larger than lr a step is, by the matrix's rows and columns.
SCALES: dict[str, Callable[[int, int], float]] = {
    "match_rms_adamw": lambda rows, columns: 0.2 * math.sqrt(max(rows, columns)),
    "original": lambda rows, columns: math.sqrt(max(1.0, rows / columns)),
}


class Muon(torch.optim.Optimizer):
    """Steps every matrix by its orthogonalized momentum, and the rest by torch's fused AdamW.

    Args:
        params: parameters, or groups of them; those of a group with ``use_fallback`` are stepped by
            AdamW, as are vectors, depthwise filters and matrices that are very narrow.
        lr: of the matrices; a tensor where the step is recorded.
        weight_decay: decoupled, as AdamW's.
        momentum: of the matrices.
        nesterov: looks one step ahead.
        ns_steps: Newton-Schulz iterations.
        adjust_lr_fn: ``match_rms_adamw`` or ``original``.
        fallback_lr_scale: AdamW's learning rate, as a multiple of ``lr``.
        betas, eps: AdamW's.
        capturable: whether a step may be recorded as a CUDA graph.

    Raises:
        ValueError: an unknown ``adjust_lr_fn``, or a number out of range.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 0.02,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        nesterov: bool = False,
        ns_steps: int = 5,
        adjust_lr_fn: Literal["match_rms_adamw", "original"] = "match_rms_adamw",
        fallback_lr_scale: float = 1.0,
        betas: Sequence[float] = (0.9, 0.95),
        eps: float = EPS,
        capturable: bool = False,
    ) -> None:
        if adjust_lr_fn not in SCALES:
            raise ValueError(f"adjust_lr_fn is {adjust_lr_fn!r}: choose {' or '.join(SCALES)}")
        if not isinstance(ns_steps, int) or ns_steps < 1:
            raise ValueError(f"ns_steps is {ns_steps!r}: a whole number from 1 up")
        if len(betas) != 2:
            raise ValueError(f"betas is {betas}: it must be two numbers")
        rates = {"momentum": momentum, "beta 1": betas[0], "beta 2": betas[1]}
        for name, rate in rates.items():
            if not 0 <= rate < 1:
                raise ValueError(f"{name} is {rate}: it must be at least 0 and below 1")
        defaults = {
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "nesterov": nesterov,
            "ns_steps": ns_steps,
            "adjust_lr_fn": adjust_lr_fn,
            "fallback_lr_scale": fallback_lr_scale,
            "betas": tuple(betas),
            "eps": eps,
            "capturable": capturable,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Takes one step; parameters without a gradient stay as they are."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            given = [p for p in group["params"] if p.grad is not None]
            matrices = [p for p in given if not group.get("use_fallback") and is_matrix(p)]
            if matrices:
                self._step_matrices(matrices, group)
            if others := [p for p in given if group.get("use_fallback") or not is_matrix(p)]:
                self._step_others(others, group)
        return loss

    def _step_matrices(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        lr, momentum = group["lr"], group["momentum"]
        grads = [p.grad for p in parameters if p.grad is not None]
        buffers = [self._state(p, "momentum_buffer") for p in parameters]
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, 1 - lr * group["weight_decay"])
        torch._foreach_lerp_(buffers, grads, 1 - momentum)
        updates = torch._foreach_lerp(grads, buffers, momentum) if group["nesterov"] else buffers
        shapes: dict[Any, list[tuple[Tensor, Tensor]]] = {}
        for parameter, update in zip(parameters, updates, strict=True):
            if parameter.ndim == 4 and parameter.is_contiguous(memory_format=torch.channels_last):
                # As it lies in memory: whatever the order of the columns, the step is the same.
                parameter, update = parameter.permute(0, 2, 3, 1), update.permute(0, 2, 3, 1)
            matrix = (update.full_tensor() if isinstance(update, DTensor) else update).flatten(1)
            shapes.setdefault((matrix.shape, matrix.device), []).append((parameter, matrix))
        for (shape, _), pairs in shapes.items():
            scale = SCALES[group["adjust_lr_fn"]](*shape)
            steps = orthogonalize(torch.stack([m for _, m in pairs]), group["ns_steps"])
            for (parameter, _), step in zip(pairs, steps, strict=True):
                step = step.reshape(parameter.shape).to(parameter.dtype)
                if isinstance(parameter, DTensor):
                    step = distribute_tensor(step, parameter.device_mesh, parameter.placements)
                if isinstance(lr, Tensor):
                    parameter.sub_(step * (lr * scale))
                else:
                    parameter.add_(step, alpha=-lr * scale)

    def _step_others(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        counts = []
        for p in parameters:
            count = self.state[p].get("step")
            if count is None or count.device != p.device:
                count = torch.zeros((), device=p.device) if count is None else count.to(p.device)
                self.state[p]["step"] = count
            counts.append(count)
        beta1, beta2 = group["betas"]
        adamw(
            parameters,
            [p.grad for p in parameters if p.grad is not None],
            [self._state(p, "exp_avg") for p in parameters],
            [self._state(p, "exp_avg_sq") for p in parameters],
            [],
            counts,
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"] * group["fallback_lr_scale"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
            capturable=group["capturable"],
        )

    def _state(self, parameter: Tensor, name: str) -> Tensor:
        state = self.state[parameter]
        if name not in state:
            state[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        return state[name]


def is_matrix(parameter: Tensor) -> bool:
    """Whether Muon orthogonalizes the steps of a parameter, filters being matrices of their taps.

    Not of vectors, of depthwise filters and position tables (a first or second dimension of 1), nor
    where one side is shorter than 4 or 128 times as long as the other.
    """
    shape = parameter.shape
    if parameter.ndim < 2 or shape[0] == 1 or shape[1] == 1:
        return False
    rows, columns = shape[0], parameter.numel() // shape[0]
    return min(rows, columns) >= 4 and max(rows, columns) <= 128 * min(rows, columns)


def orthogonalize(matrices: Tensor, steps: int) -> Tensor:
    """Newton-Schulz iterations towards the nearest orthogonal matrices, of many at once.

    X ← (a I + b A + c A²) X with A = X Xᵀ. On a device with bfloat16 arithmetic, X is iterated in
    it. On a CPU, in float32, only A is, which is small where X is wide: A ← P A P needs no X, which
    is multiplied once, by the product of all P (of 96 × 864 that is two fifths of the work).

    Args:
        matrices: (B, M, N).
        steps: iterations.

    Returns:
        (B, M, N), float32 or bfloat16, whatever precision is autocast to.
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    chosen = [COEFFICIENTS[min(index, len(COEFFICIENTS) - 1)] for index in range(steps)]
    kind = x.device.type
    with torch.autocast(kind, enabled=False):
        if kind == "cpu" or imitates_bfloat16(kind):
            x = by_gram_matrices(x.float(), chosen)
        else:
            x = by_matrices(x.bfloat16(), chosen)
    return x.mT if tall else x


def by_matrices(x: Tensor, coefficients: list[tuple[float, float, float]]) -> Tensor:
    """The iterations as they are written, for arithmetic of few digits: (B, M, N) with M ≤ N."""
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=EPS)
    for a, b, c in coefficients:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def by_gram_matrices(x: Tensor, coefficients: list[tuple[float, float, float]]) -> Tensor:
    """The same from X Xᵀ alone: (B, M, N) with M ≤ N."""
    gram = x @ x.mT
    norm = gram.diagonal(dim1=1, dim2=2).sum(1).sqrt().clamp(min=EPS)[:, None, None]
    gram = gram / norm.square()
    product = torch.eye(x.shape[1], device=x.device).expand_as(gram)
    for index, (a, b, c) in enumerate(coefficients):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=1, dim2=2).add_(a)
        product = factor @ product if index else factor
        if index + 1 < len(coefficients):
            gram = factor @ gram @ factor
    return (product / norm) @ x
