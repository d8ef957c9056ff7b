"""A decoder-only transformer for language: RMSNorm or LayerNorm, and dropout at four places.

Vaswani et al., "Attention Is All You Need", NeurIPS 2017, in the forms that became usual: norm
before every branch (Radford et al. 2019, GPT-2, section 2.3), and by choice RMSNorm, rotary
positions, SwiGLU and grouped-query heads (Touvron et al. 2023, Llama, section 2.2). Nothing in it
normalizes over the batch, so dropout shifts no running statistics and may stand inside: on the
embeddings, on the attention weights, after every branch (residual), and in the feed-forward part,
each with its own rate. Large models of today train with none; small ones on little text need it.

Weights of Hugging Face's Llama and GPT-2 load through ``zoo.networks.hugging_face``.

Shapes: B batch, T tokens, D embedding, V vocabulary, H heads, G key-value heads, d = D / H.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.networks.base import Network, check_choice, check_rates, check_sizes
from zoo.networks.fast import FastDropout, RMSNorm, attend
from zoo.networks.initializers import init_transformer
from zoo.networks.layers import make_norm

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


class Cache:
    """Keys and values of the tokens seen so far, so that each is computed once."""

    def __init__(self, layers: int, length: int) -> None:
        self.length, self.seen = length, 0
        self.keys: list[Tensor | None] = [None] * layers
        self.values: list[Tensor | None] = [None] * layers

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Adds (B, G, T, d) of new tokens and returns those of all tokens."""
        kept: list[Tensor] = []
        added = keys.shape[2]
        stop = self.seen + added
        for store, new in ((self.keys, keys), (self.values, values)):
            whole = store[layer]
            if whole is None:  # space for a whole context, made once
                whole = new.new_empty(*new.shape[:2], self.length, new.shape[3])
                store[layer] = whole
            whole.narrow(2, self.seen, added).copy_(new)
            kept.append(whole.narrow(2, 0, stop))
        return kept[0], kept[1]


class Attention(nn.Module):
    """Causal self-attention, its dropout on the attention weights.

    Several query heads may share a key-value head (Ainslie et al. 2023, "GQA"). Normalized
    queries and keys bound the attention logits (Henry et al. 2020).
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_kv_heads: int,
        bias: bool,
        qk_norm: bool,
        norm_eps: float,
        attn_drop: float,
        drop: float,
    ) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.attn_drop = num_heads, num_kv_heads, attn_drop
        self.size = size = dim // num_heads
        self.q = nn.Linear(dim, num_heads * size, bias=bias)
        self.k = nn.Linear(dim, num_kv_heads * size, bias=bias)
        self.v = nn.Linear(dim, num_kv_heads * size, bias=bias)
        self.q_norm = RMSNorm(size, eps=norm_eps) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(size, eps=norm_eps) if qk_norm else nn.Identity()
        self.proj = nn.Linear(num_heads * size, dim, bias=bias)
        self.drop = FastDropout(drop)

    def forward(self, x: Tensor, turn: Turn | None, cache: Cache | None, layer: int) -> Tensor:
        """(B, T, D) → the same; with a cache, the T tokens follow those in it."""
        batch, tokens, _ = x.shape
        q = self.q_norm(self.q(x).view(batch, tokens, self.num_heads, -1)).transpose(1, 2)
        k = self.k_norm(self.k(x).view(batch, tokens, self.num_kv_heads, -1)).transpose(1, 2)
        v = self.v(x).view(batch, tokens, self.num_kv_heads, -1).transpose(1, 2)
        start = 0 if cache is None else cache.seen
        if turn is not None:
            q, k = rotate(q, turn), rotate(k, turn)
        if cache is not None:
            k, v = cache.extend(layer, k, v)
        mask = None
        if start and tokens > 1:  # each new token sees the old ones and the new ones up to itself
            mask = torch.ones(tokens, k.shape[2], dtype=torch.bool, device=x.device).tril(start)
        rate = self.attn_drop if self.training else 0.0
        x = attend(q, k, v, rate, causal=not start, mask=mask)
        return self.drop(self.proj(x.transpose(1, 2).flatten(2)))


class MLP(nn.Module):
    """Linear, GELU, dropout, linear, dropout: the feed-forward part of GPT-2."""

    def __init__(
        self, dim: int, hidden_dim: int, bias: bool, approximate: str, mlp_drop: float, drop: float
    ) -> None:
        super().__init__()
        self.up = nn.Linear(dim, hidden_dim, bias=bias)
        self.act = nn.GELU(approximate)
        self.mlp_drop = FastDropout(mlp_drop)
        self.down = nn.Linear(hidden_dim, dim, bias=bias)
        self.drop = FastDropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) → the same."""
        return self.drop(self.down(self.mlp_drop(self.act(self.up(x)))))


class SwiGLU(nn.Module):
    """A linear layer gated by another one's SiLU, dropout, linear, dropout (Shazeer 2020)."""

    def __init__(self, dim: int, hidden_dim: int, bias: bool, mlp_drop: float, drop: float) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, hidden_dim, bias=bias)
        self.up = nn.Linear(dim, hidden_dim, bias=bias)
        self.mlp_drop = FastDropout(mlp_drop)
        self.down = nn.Linear(hidden_dim, dim, bias=bias)
        self.drop = FastDropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) → the same."""
        return self.drop(self.down(self.mlp_drop(F.silu(self.gate(x)) * self.up(x))))


class Block(nn.Module):
    """Norm, attention, add; norm, feed-forward, add."""

    def __init__(self, norm1: nn.Module, attn: Attention, norm2: nn.Module, mlp: nn.Module) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2, self.mlp = norm1, attn, norm2, mlp

    def forward(self, x: Tensor, turn: Turn | None, cache: Cache | None, layer: int) -> Tensor:
        """(B, T, D) → the same."""
        x = x + self.attn(self.norm1(x), turn, cache, layer)
        return x + self.mlp(self.norm2(x))


class Transformer(Network):
    """A decoder-only language model: tokens in, logits of the next token out.

    Args:
        vocab_size: how many tokens there are.
        context_length: tokens that it sees at once, at most.
        embed_dim, depth, num_heads: size of the transformer.
        num_kv_heads: key-value heads; each serves ``num_heads / num_kv_heads`` query heads. As
            many as ``num_heads`` where none are given.
        hidden_dim: width of the feed-forward part; by default 4 · embed_dim for GELU, and for
            SwiGLU, which has three matrices, 8/3 · embed_dim, rounded up to a multiple of 8.
        norm: ``rmsnorm``, or ``layernorm``, which also subtracts the mean.
        positions: ``rotary`` or ``learned``.
        mlp: ``swiglu``, ``gelu``, or ``gelu_tanh`` (the approximation that GPT-2 was trained with).
        qk_norm: RMSNorm on the queries and keys of each head.
        tied: the last layer's weights are those of the embedding (Press & Wolf 2017).
        bias: biases of linear layers and LayerNorm.
        norm_eps: ε of all norms.
        rotary_base: base of the rotary frequencies.
        embed_drop_rate: rate of dropout on the embeddings.
        attn_drop_rate: rate of dropout on the attention weights.
        resid_drop_rate: rate of dropout after each branch, before it is added.
        mlp_drop_rate: rate of dropout inside the feed-forward part.

    Raises:
        ValueError: sizes that do not divide, an unknown choice, or a rate outside [0, 1).
    """

    def __init__(
        self,
        vocab_size: int = 256,
        context_length: int = 256,
        embed_dim: int = 128,
        depth: int = 4,
        num_heads: int = 4,
        num_kv_heads: int | None = None,
        hidden_dim: int | None = None,
        norm: Literal["rmsnorm", "layernorm"] = "rmsnorm",
        positions: Literal["rotary", "learned"] = "rotary",
        mlp: Literal["swiglu", "gelu", "gelu_tanh"] = "swiglu",
        qk_norm: bool = False,
        tied: bool = True,
        bias: bool = False,
        norm_eps: float = 1e-5,
        rotary_base: float = 10_000.0,
        embed_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        resid_drop_rate: float = 0.0,
        mlp_drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        check_sizes(
            vocab_size=vocab_size,
            context_length=context_length,
            depth=depth,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
        )
        if embed_dim % num_heads or num_heads % num_kv_heads:
            raise ValueError(
                f"embed_dim {embed_dim} must be a multiple of num_heads {num_heads}, and num_heads "
                f"of num_kv_heads {num_kv_heads}"
            )
        if positions == "rotary" and (embed_dim // num_heads) % 2:
            raise ValueError(
                "rotary positions turn pairs, and embed_dim / num_heads is odd: "
                f"{embed_dim // num_heads}"
            )
        check_choice("positions", positions, "rotary", "learned")
        check_choice("mlp", mlp, "swiglu", "gelu", "gelu_tanh")
        check_rates(
            embed_drop_rate=embed_drop_rate,
            attn_drop_rate=attn_drop_rate,
            resid_drop_rate=resid_drop_rate,
            mlp_drop_rate=mlp_drop_rate,
        )
        if hidden_dim is None:
            hidden_dim = 8 * math.ceil(embed_dim / 3) if mlp == "swiglu" else 4 * embed_dim

        def make_mlp() -> nn.Module:
            if mlp == "swiglu":
                return SwiGLU(embed_dim, hidden_dim, bias, mlp_drop_rate, resid_drop_rate)
            approximate = "tanh" if mlp == "gelu_tanh" else "none"
            return MLP(embed_dim, hidden_dim, bias, approximate, mlp_drop_rate, resid_drop_rate)

        def make_attention() -> Attention:
            return Attention(
                embed_dim,
                num_heads,
                num_kv_heads,
                bias,
                qk_norm,
                norm_eps,
                attn_drop_rate,
                resid_drop_rate,
            )

        self.vocab_size, self.context_length, self.depth = vocab_size, context_length, depth
        self.embed = nn.Embedding(vocab_size, embed_dim)
        self.positions = nn.Embedding(context_length, embed_dim) if positions == "learned" else None
        self.rotary = (
            Rotary(embed_dim // num_heads, context_length, rotary_base)
            if positions == "rotary"
            else None
        )
        self.embed_drop = FastDropout(embed_drop_rate)
        self.blocks = nn.ModuleList(
            Block(
                make_norm(norm, embed_dim, norm_eps, bias),
                make_attention(),
                make_norm(norm, embed_dim, norm_eps, bias),
                make_mlp(),
            )
            for _ in range(depth)
        )
        self.norm = make_norm(norm, embed_dim, norm_eps, bias)
        self.head = nn.Linear(embed_dim, vocab_size, bias=False)
        init_transformer(self)
        for name, parameter in self.named_parameters():
            # What is added to the residual stream 2 · depth times starts smaller by the root of
            # that (Radford et al. 2019, section 2.3).
            if name.endswith(("proj.weight", "down.weight")):
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * depth))
        if tied:
            self.head.weight = self.embed.weight

    def fallback_parameters(self) -> set[str]:
        """Matrices that are tables, which an optimizer for matrices leaves to its fallback."""
        return {"embed.weight", "positions.weight", "head.weight"}

    def make_cache(self) -> Cache:
        """Makes an empty cache for ``forward``."""
        return Cache(self.depth, self.context_length)

    def forward(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        """Tokens (B, T) → logits of each next token (B, T, V).

        Args:
            tokens: int64.
            cache: tokens seen before; these T tokens are added to it.

        Raises:
            ValueError: more tokens than ``context_length``, those in the cache among them.
        """
        start = 0 if cache is None else cache.seen
        stop = start + tokens.shape[1]
        if stop > self.context_length:
            raise ValueError(f"{stop} tokens, and the context is {self.context_length}")
        x = self.embed(tokens)
        if self.positions is not None:
            x = x + self.positions.weight[start:stop]
        x = self.embed_drop(x)
        turn = None if self.rotary is None else self.rotary(start, stop)
        for layer, block in enumerate(self.blocks):
            x = block(x, turn, cache, layer)
        if cache is not None:
            cache.seen = stop
        return self.head(self.norm(x))
