"""BatchNorm's running statistics, estimated anew for the weights as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class PooledMoments:
    """Mean and variance of each channel over every value seen.

    Pooled, not averaged over batches: the spread of the batch means belongs to the variance.
    """

    def __init__(self) -> None:
        self.count = 0.0
        self.total: Tensor | None = None
        self.squares: Tensor | None = None

    def update(self, x: Tensor) -> None:
        """Adds a BatchNorm's input, (B, C) or (B, C, …)."""
        others = [dimension for dimension in range(x.ndim) if dimension != 1]
        # A batch's own moments in single precision, about its own mean; the pooling in double.
        variance, mean = torch.var_mean(x.detach().float(), dim=others, correction=0)
        count = x.numel() // x.shape[1]
        mean, variance = mean.double(), variance.double()
        total, squares = mean * count, (variance + mean.square()) * count
        self.total = total if self.total is None else self.total + total
        self.squares = squares if self.squares is None else self.squares + squares
        self.count += count

    def reduce(self) -> tuple[Tensor, Tensor]:
        """Mean and unbiased variance (C,), over all processes where there are several."""
        assert self.total is not None
        assert self.squares is not None
        count = torch.full_like(self.total[:1], self.count)
        pooled = torch.cat([self.total, self.squares, count])
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(pooled)
        channels = len(self.total)
        count = pooled[-1]
        mean = pooled[:channels] / count
        variance = pooled[channels:-1] / count - mean.square()
        return mean, variance.clamp_min(0) * count / (count - 1)


@torch.no_grad()
def estimate_running_statistics(
    model: nn.Module, batches: Iterable[Any], forward: Callable[[Any], Any] | None = None
) -> int:
    """Replaces every running mean and variance by that of the batches' activations, in place.

    Each BatchNorm normalises by the batch while the statistics of its input are gathered, as in
    training, but dropout is off: with dropout on, the statistics would remember a variance that
    evaluation never sees (Li et al., CVPR 2019; torch's ``update_bn`` leaves it on). Frozen
    BatchNorm (one whose ``train()`` keeps it in evaluation mode) and parameters are left alone,
    modes come back as they were. Works under DDP: the moments are pooled over the processes.

    Args:
        model: any module; without BatchNorm nothing is done.
        batches: what ``forward`` takes.
        forward: runs the model on a batch; the model itself by default.

    Returns:
        The number of BatchNorm layers renewed.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    norms: list[_BatchNorm] = []
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.running_mean is not None:
            module.train()
            if module.training:  # a frozen one refuses
                norms.append(module)
    gathered = {norm: PooledMoments() for norm in norms}
    before = [[buffer.clone() for buffer in norm.buffers()] for norm in norms]
    hooks = [norm.register_forward_pre_hook(_gather(gathered[norm])) for norm in norms]
    try:
        if norms:
            for batch in batches:
                (forward or model)(batch)
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes:
            module.training = training
        for norm, saved in zip(norms, before, strict=True):
            for buffer, value in zip(norm.buffers(), saved, strict=True):
                buffer.copy_(value)
    renewed = [norm for norm in norms if gathered[norm].count]
    for norm in renewed:
        mean, variance = gathered[norm].reduce()
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
    return len(renewed)


def _gather(moments: PooledMoments) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    return lambda _, inputs: moments.update(inputs[0])
