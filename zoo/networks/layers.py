"""Layers that two or more networks share: convolutions, kinds of dropout, norms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.networks.base import check_choice, check_rates
from zoo.networks.fast import RMSNorm


def conv3x3(in_channels: int, out_channels: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    # No bias: the BatchNorm that follows subtracts it again.
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, groups=groups, bias=False)


def conv1x1(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)


class GaussianDropout(nn.Module):
    """Multiplies by noise N(1, rate / (1 - rate)), whose variance is that of dropout at ``rate``.

    Srivastava et al. 2014, section 10. The identity in evaluation and at rate 0. Placed before
    BatchNorm, it shifts the variance as dropout does.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        check_rates(rate=rate)
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Any shape → the same."""
        if not self.training or not self.rate:
            return x
        return x * (1 + (self.rate / (1 - self.rate)) ** 0.5 * torch.randn_like(x))

    def extra_repr(self) -> str:
        return f"rate={self.rate}"


class DropConnect(nn.Linear):
    """A linear layer that drops weights in place of inputs: one mask a batch, biases kept.

    Wan et al., ICML 2013, section 3. In evaluation and at rate 0 it is ``nn.Linear``, with the
    same parameter names.
    """

    def __init__(self, in_features: int, out_features: int, rate: float) -> None:
        super().__init__(in_features, out_features)
        check_rates(rate=rate)
        self.rate = rate

    def forward(self, input: Tensor) -> Tensor:
        """(…, in_features) → (…, out_features)."""
        return F.linear(input, F.dropout(self.weight, self.rate, self.training), self.bias)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rate={self.rate}"


def make_norm(kind: str, dim: int, eps: float = 1e-6, bias: bool = True) -> nn.Module:
    """Makes ``layernorm``, with or without a bias, or ``rmsnorm``, over the last dimension.

    Raises:
        ValueError: another kind.
    """
    check_choice("norm", kind, "layernorm", "rmsnorm")
    return nn.LayerNorm(dim, eps, bias=bias) if kind == "layernorm" else RMSNorm(dim, eps)


def in_own_precision(layer: nn.Module, x: Tensor) -> Tensor:
    """Runs a layer in the precision of its weights, under autocast too."""
    with torch.autocast(x.device.type, enabled=False):
        return layer(x.to(next(layer.parameters()).dtype))


def adapt_input(weight: Any, in_channels: int) -> Any:
    """Adapts a first convolution's weight (O, C, h, w) to another number of input channels.

    More channels repeat the old ones cyclically, each divided by how often it occurs; fewer sum
    what they replace. So an image whose channels repeat, or stand for several, gives the same
    output.
    """
    return torch.einsum("nc,ochw->onhw", _shares(weight.shape[1], in_channels).to(weight), weight)


def adapt_statistics(values: list[float], in_channels: int) -> list[float]:
    """Adapts a mean or standard deviation per channel to another number of channels."""
    shares = _shares(len(values), in_channels)
    averages = shares / shares.sum(1, keepdim=True)
    return [round(value, 6) for value in (averages @ torch.tensor(values)).tolist()]


def _shares(old: int, new: int) -> Tensor:
    """(new, old): how much of each old channel a new one takes."""
    shares = torch.zeros(new, old)
    for index in range(max(old, new)):
        shares[index % new, index % old] = 1
    return shares / shares.sum(0)
