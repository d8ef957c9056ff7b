"""Mean and variance of what a BatchNorm sees."""

from __future__ import annotations

import torch
from torch import Tensor
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
        # Two means: `torch.var_mean` takes several times as long on a CPU.
        values = x.detach().float()
        center = values.mean(dim=others, keepdim=True)
        variance = (values - center).square_().mean(dim=others).double()
        mean = center.flatten().double()
        count = x.numel() // x.shape[1]
        total, squares = mean * count, (variance + mean.square()) * count
        self.total = total if self.total is None else self.total + total
        self.squares = squares if self.squares is None else self.squares + squares
        self.count += count

    def reduce(self, correction: int = 1) -> tuple[Tensor, Tensor]:
        """Mean and variance (C,), over all processes where there are several.

        Args:
            correction: 1 for the unbiased variance, which BatchNorm remembers; 0 for that of the
                values themselves, by which it normalizes in training.
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
        variance = pooled[channels:-1] / count - mean.square()
        return mean, variance.clamp_min(0) * count / (count - correction)


def is_live(norm: _BatchNorm) -> bool:
    """Whether a BatchNorm in its present mode learns running statistics."""
    return norm.training and norm.running_mean is not None
