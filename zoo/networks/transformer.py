"""A decoder-only transformer for language: RMSNorm or LayerNorm, and dropout at four places.

Vaswani et al., "Attention Is All You Need", NeurIPS 2017, in the forms that became usual: norm
before every branch (Radford et al. 2019, GPT-2, section 2.3), and by choice RMSNorm, rotary
positions, SwiGLU and grouped-query heads (Touvron et al. 2023, Llama, section 2.2). Nothing in it
normalises over the batch, so dropout shifts no running statistics and may stand inside: on the
embeddings, on the attention weights, after every branch (residual), and in the feed-forward part,
each with its own rate. Large models of today train with none; small ones on little text need it.

Weights of Hugging Face's Llama and GPT-2 load through ``zoo.networks.hugging_face``.

Shapes: B batch, T tokens, D embedding, V vocabulary, H heads, G key-value heads, d = D / H.
"""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor, nn

from zoo.networks.base import Network, check_choice, check_rates, check_sizes
from zoo.networks.decoding import Step
from zoo.networks.generation import Cache
from zoo.networks.initialisers import init_transformer
from zoo.networks.layers import Dropout, make_norm
from zoo.networks.rotary import Rotary
from zoo.networks.transformer_blocks import MLP, Attention, Block, SwiGLU


class Transformer(Network):
    """A decoder-only language model: tokens in, logits of the next token out.

    Args:
        vocab_size: how many tokens there are.
        context_length: how many it sees at once, at most.
        dim, depth, heads: size of the transformer.
        kv_heads: key-value heads; each serves ``heads / kv_heads`` query heads. As many as
            ``heads`` where none are given.
        hidden: of the feed-forward part; by default 4 · dim for GELU, 8/3 · dim for SwiGLU, which
            has three matrices, rounded up to a multiple of 8.
        norm: ``rmsnorm``, or ``layernorm``, which also centres.
        positions: ``rotary`` or ``learned``.
        mlp: ``swiglu``, ``gelu``, or ``gelu_tanh`` (the approximation that GPT-2 was trained with).
        qk_norm: RMSNorm on the queries and keys of each head.
        tied: the last layer's weights are those of the embedding (Press & Wolf 2017).
        bias: of linear layers and LayerNorm.
        norm_eps: ε of all norms.
        rotary_base: of the rotary frequencies.
        embed_drop_rate: of dropout on the embeddings.
        attn_drop_rate: of dropout on the attention weights.
        resid_drop_rate: of dropout after each branch, before it is added.
        mlp_drop_rate: of dropout inside the feed-forward part.

    Raises:
        ValueError: sizes that do not divide, an unknown choice, or a rate outside [0, 1).
    """

    def __init__(
        self,
        vocab_size: int,
        context_length: int = 256,
        dim: int = 128,
        depth: int = 4,
        heads: int = 4,
        kv_heads: int | None = None,
        hidden: int | None = None,
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
        kv_heads = heads if kv_heads is None else kv_heads
        check_sizes(
            vocab_size=vocab_size,
            context_length=context_length,
            depth=depth,
            heads=heads,
            kv_heads=kv_heads,
        )
        if dim % heads or heads % kv_heads:
            raise ValueError(
                f"dim {dim} must be a multiple of heads {heads}, and they of kv_heads {kv_heads}"
            )
        if positions == "rotary" and (dim // heads) % 2:
            raise ValueError(f"rotary positions turn pairs: dim / heads is {dim // heads}, odd")
        check_choice("positions", positions, "rotary", "learned")
        check_choice("mlp", mlp, "swiglu", "gelu", "gelu_tanh")
        check_rates(
            embed_drop_rate=embed_drop_rate,
            attn_drop_rate=attn_drop_rate,
            resid_drop_rate=resid_drop_rate,
            mlp_drop_rate=mlp_drop_rate,
        )
        if hidden is None:
            hidden = 8 * math.ceil(dim / 3) if mlp == "swiglu" else 4 * dim

        def make_mlp() -> nn.Module:
            if mlp == "swiglu":
                return SwiGLU(dim, hidden, bias, mlp_drop_rate, resid_drop_rate)
            approximate = "tanh" if mlp == "gelu_tanh" else "none"
            return MLP(dim, hidden, bias, approximate, mlp_drop_rate, resid_drop_rate)

        def make_attention() -> Attention:
            return Attention(
                dim, heads, kv_heads, bias, qk_norm, norm_eps, attn_drop_rate, resid_drop_rate
            )

        self.vocab_size, self.context_length, self.depth = vocab_size, context_length, depth
        self.embed = nn.Embedding(vocab_size, dim)
        self.positions = nn.Embedding(context_length, dim) if positions == "learned" else None
        self.rotary = (
            Rotary(dim // heads, context_length, rotary_base) if positions == "rotary" else None
        )
        self.embed_drop = Dropout(embed_drop_rate)
        self.blocks = nn.ModuleList(
            Block(
                make_norm(norm, dim, norm_eps, bias),
                make_attention(),
                make_norm(norm, dim, norm_eps, bias),
                make_mlp(),
            )
            for _ in range(depth)
        )
        self.norm = make_norm(norm, dim, norm_eps, bias)
        self.head = nn.Linear(dim, vocab_size, bias=False)
        init_transformer(self)
        for name, parameter in self.named_parameters():
            # What is added to the residual stream 2 · depth times starts smaller by the root of
            # that (Radford et al. 2019, section 2.3).
            if name.endswith(("proj.weight", "down.weight")):
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * depth))
        if tied:
            self.head.weight = self.embed.weight

    def fallback_parameters(self) -> set[str]:
        """Matrices that are tables, which an optimiser for matrices leaves to its fallback."""
        return {"embed.weight", "positions.weight", "head.weight"}

    def make_cache(self) -> Cache:
        """An empty cache for ``forward``."""
        return Cache(self.depth, self.context_length)

    def _step(self, cache: Cache) -> Step | None:
        """What reads one token in few calls, unless a module would do more than that computes."""
        modules = list(self.modules())[1:] if cache.step is None else cache.step.modules
        if type(self) is not Transformer or not Step.serves(modules):
            return None
        if cache.step is None:
            cache.step = Step(self, modules)
        return cache.step

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
        if cache is not None and start and tokens.shape[1] == 1:
            step = self._step(cache)
            if step is not None:
                return step(tokens, cache)
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
