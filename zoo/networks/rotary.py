"""Rotary positions: Su et al. 2021, "RoFormer", section 3.2.2.

Shapes: B batch, H heads, T tokens, d size of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

Turn = tuple[Tensor, Tensor]


class Rotary(nn.Module):
    """Rotary positions: queries and keys are turned by an angle that grows with the position.

    Su et al. 2021, "RoFormer", section 3.2.2; halves are paired as in Llama's code.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, head_dim: int, length: int, base: float) -> None:
        super().__init__()
        frequencies = base ** (-torch.arange(0, head_dim, 2).float() / head_dim)
        angles = torch.outer(torch.arange(length).float(), frequencies)
        cos, sin = angles.cos(), angles.sin()  # (length, d / 2)
        self.register_buffer("cos", torch.cat([cos, cos], 1), persistent=False)
        self.register_buffer("sin", torch.cat([-sin, sin], 1), persistent=False)

    def forward(self, start: int, stop: int) -> Turn:
        """The turn of positions ``start`` … ``stop``, for all layers: cos and sin, (T, d) each."""
        return self.cos[start:stop], self.sin[start:stop]


def rotate(x: Tensor, turn: Turn) -> Tensor:
    """(B, H, T, d) → the same, each half turned against the other."""
    cos, sin = (part.to(x.dtype) for part in turn)
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)
