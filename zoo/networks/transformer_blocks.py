"""What a decoder-only transformer repeats: causal attention and a feed-forward part, with dropout.

Shapes: B batch, T tokens, D embedding, H heads, G key-value heads, d = D / H.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.networks.generation import Cache
from zoo.networks.layers import Dropout, RMSNorm, attend
from zoo.networks.rotary import Turn, rotate


class Attention(nn.Module):
    """Causal self-attention, its dropout on the attention weights.

    Several query heads may share a key-value head (Ainslie et al. 2023, "GQA"). Normalised
    queries and keys bound the attention logits (Henry et al. 2020).
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        kv_heads: int,
        bias: bool,
        qk_norm: bool,
        norm_eps: float,
        attn_drop: float,
        drop: float,
    ) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.attn_drop = heads, kv_heads, attn_drop
        self.size = size = dim // heads
        self.q = nn.Linear(dim, heads * size, bias=bias)
        self.k = nn.Linear(dim, kv_heads * size, bias=bias)
        self.v = nn.Linear(dim, kv_heads * size, bias=bias)
        self.q_norm = RMSNorm(size, eps=norm_eps) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(size, eps=norm_eps) if qk_norm else nn.Identity()
        self.proj = nn.Linear(heads * size, dim, bias=bias)
        self.drop = Dropout(drop)

    def forward(self, x: Tensor, turn: Turn | None, cache: Cache | None, layer: int) -> Tensor:
        """(B, T, D) → the same; with a cache, the T tokens follow those in it."""
        batch, tokens, _ = x.shape
        q = self.q_norm(self.q(x).view(batch, tokens, self.heads, -1)).transpose(1, 2)
        k = self.k_norm(self.k(x).view(batch, tokens, self.kv_heads, -1)).transpose(1, 2)
        v = self.v(x).view(batch, tokens, self.kv_heads, -1).transpose(1, 2)
        start = 0 if cache is None else cache.seen
        if turn is not None:
            q, k = rotate(q, turn), rotate(k, turn)
        if cache is not None:
            k, v = cache.extend(layer, k, v)
        mask = None
        if start and tokens > 1:  # each new token sees the old ones and the new ones up to itself
            mask = torch.ones(tokens, k.shape[2], dtype=torch.bool, device=x.device).tril(start)
        rate = self.attn_drop if self.training else 0.0
        x = attend(q, k, v, rate, causal=not start and tokens > 1, mask=mask)
        return self.drop(self.proj(x.transpose(1, 2).flatten(2)))


class MLP(nn.Module):
    """Linear, GELU, dropout, linear, dropout: the feed-forward part of GPT-2."""

    def __init__(
        self, dim: int, hidden: int, bias: bool, approximate: str, mlp_drop: float, drop: float
    ) -> None:
        super().__init__()
        self.up = nn.Linear(dim, hidden, bias=bias)
        self.act = nn.GELU(approximate)
        self.mlp_drop = Dropout(mlp_drop)
        self.down = nn.Linear(hidden, dim, bias=bias)
        self.drop = Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) → the same."""
        return self.drop(self.down(self.mlp_drop(self.activate(self.up(x)))))

    def activate(self, up: Tensor) -> Tensor:
        """What stands between the linear layers."""
        return self.act(up)

    def inner(self) -> list[nn.Linear]:
        """The layers whose outputs ``activate`` takes."""
        return [self.up]


class SwiGLU(nn.Module):
    """A linear layer gated by another one's SiLU, dropout, linear, dropout (Shazeer 2020)."""

    def __init__(self, dim: int, hidden: int, bias: bool, mlp_drop: float, drop: float) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, hidden, bias=bias)
        self.up = nn.Linear(dim, hidden, bias=bias)
        self.mlp_drop = Dropout(mlp_drop)
        self.down = nn.Linear(hidden, dim, bias=bias)
        self.drop = Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) → the same."""
        return self.drop(self.down(self.mlp_drop(self.activate(self.gate(x), self.up(x)))))

    def activate(self, gate: Tensor, up: Tensor) -> Tensor:
        """What stands between the linear layers."""
        return F.silu(gate) * up

    def inner(self) -> list[nn.Linear]:
        """The layers whose outputs ``activate`` takes."""
        return [self.gate, self.up]


class Block(nn.Module):
    """Norm, attention, add; norm, feed-forward, add."""

    def __init__(self, norm1: nn.Module, attn: Attention, norm2: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2, self.mlp = norm1, attn, norm2, mlp

    def forward(self, x: Tensor, turn: Turn | None, cache: Cache | None, layer: int) -> Tensor:
        """(B, T, D) → the same."""
        x = x + self.attn(self.norm1(x), turn, cache, layer)
        return x + self.mlp(self.norm2(x))
