"""Joined weights for decoding: one more token of each text, in fewer calls than the modules make.

A step of generation computes so little that calling modules takes longer than their products.
``Step`` computes what ``Transformer.forward`` does from weights that are joined once: queries, keys
and values are one product, and so are gate and up; the scale and shift of a norm are part of the
matrix after it; positions turn queries and keys by one matrix. The network knows nothing of it:
``Reader`` stands between it and whoever generates.

Shapes: B texts, D embedding, V vocabulary, H heads, G key-value heads, d = D / H.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.networks.fast import FastDropout, RMSNorm, attend
from zoo.networks.transformer import MLP, Attention, Block, Rotary, SwiGLU, Transformer, rotate

KNOWN = {
    *(Transformer, Block, Attention, MLP, SwiGLU, Rotary, RMSNorm, FastDropout),
    *(nn.ModuleList, nn.Embedding, nn.LayerNorm, nn.Linear, nn.GELU, nn.Identity),
}  # modules that ``Step`` computes without calling them
Joined = tuple[Tensor, Tensor | None]  # the weight and the bias of a linear layer


class Reader:
    """``network(tokens, cache)`` of any language network, by ``Step`` where that gives the same.

    Args:
        network: with ``forward(tokens, cache)``.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.cache: Any = None  # whose keys and values are those of the step's weights
        self.step: Step | None = None

    def __call__(self, tokens: Tensor, cache: Any) -> Tensor:
        """Logits (B, T, V) of the tokens (B, T) that follow those in the cache."""
        network = self.network
        one_more = cache is not None and cache.seen > 0 and tokens.shape[1] == 1
        if not one_more or not can_join(network) or cache.seen >= cache.length:
            return network(tokens, cache)  # which says what is wrong where the cache is full
        if self.step is None or self.cache is not cache:
            self.step, self.cache = Step(network), cache
        return self.step(tokens, cache)


def can_join(network: nn.Module) -> bool:
    """Whether the modules, in their modes of now, compute nothing but what ``Step`` does.

    False in training, with gradients, in half precision, with hooks or a forward put in a module's
    place, and with modules of another kind, such as adapters: those are to be called.
    """
    if torch.is_grad_enabled():
        return False
    for module in network.modules():
        hooked = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
        if module.training or hooked or type(module) not in KNOWN:
            return False
    weight = next(network.parameters())
    return weight.dtype == torch.float32 and not torch.is_autocast_enabled(weight.device.type)


class Step:
    """A transformer's forward of one token a text, after those in a cache.

    Holds copies of the weights as they are when it is made, as a cache holds their keys and values.

    Args:
        network: a ``Transformer`` for which ``can_join`` is true.
    """

    def __init__(self, network: Any) -> None:
        self.network = network
        self.blocks: list[Any] = list(network.blocks)
        self.gated = isinstance(self.blocks[0].mlp, SwiGLU)
        inner = ("gate", "up") if self.gated else ("up",)
        self.layers = [
            (
                join([block.attn.q, block.attn.k, block.attn.v], block.norm1),
                head_scales(block.attn),
                join([block.attn.proj]),
                join([getattr(block.mlp, name) for name in inner], block.norm2),
                join([block.mlp.down]),
            )
            for block in self.blocks
        ]
        self.head = join([network.head], network.norm)
        self.identity = torch.eye(self.blocks[0].attn.size, device=network.embed.weight.device)

    def __call__(self, tokens: Tensor, cache: Any) -> Tensor:
        """Tokens (B, 1) → logits of the next (B, 1, V); the cache then has them too."""
        network, start = self.network, cache.seen
        x, turn = network.embed(tokens[:, 0]), None
        if network.positions is not None:
            x = x + network.positions.weight[start]
        if network.rotary is not None:  # as rotate is linear, a matrix does the same in one call
            turn = rotate(self.identity, network.rotary(start, start + 1))
        for number, (block, layer) in enumerate(zip(self.blocks, self.layers, strict=True)):
            attn, mlp, (qkv, scales, proj, up, down) = block.attn, block.mlp, layer
            heads = [attn.num_heads, attn.num_kv_heads]
            rows = F.linear(normalize(x, block.norm1), *qkv).view(len(x), -1, 1, attn.size)
            qk, v = rows.split_with_sizes([sum(heads), attn.num_kv_heads], 1)
            if scales is not None:
                qk = normalize(qk, attn.q_norm) * scales
            if turn is not None:
                qk = qk @ turn
            q, k = qk.split_with_sizes(heads, 1)
            x = x + F.linear(attend(q, *cache.extend(number, k, v)).flatten(1), *proj)
            inner = F.linear(normalize(x, block.norm2), *up)
            gate, inner = inner.chunk(2, 1) if self.gated else (None, inner)
            inner = mlp.act(inner) if gate is None else F.silu(gate) * inner
            x = x + F.linear(inner, *down)
        cache.seen = start + 1
        return F.linear(normalize(x, network.norm), *self.head)[:, None]


def normalize(x: Tensor, norm: Any) -> Tensor:
    """What a norm gives before its scale and shift, RMSNorm in half the calls of torch's."""
    if isinstance(norm, nn.LayerNorm):
        return F.layer_norm(x, norm.normalized_shape, None, None, norm.eps)
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    mean = torch.addcmul(x.new_full((), norm.eps), length, length, value=1 / x.shape[-1])
    return x * mean.rsqrt()


def head_scales(attn: Any) -> Tensor | None:
    """The scales (H + G, 1, d) of the norms on queries and keys, or None where there are none."""
    if isinstance(attn.q_norm, nn.Identity):
        return None
    norms = [attn.q_norm] * attn.num_heads + [attn.k_norm] * attn.num_kv_heads
    return torch.stack([norm.weight for norm in norms])[:, None]


def join(linears: list[nn.Linear], norm: Any = None) -> Joined:
    """Layers of one input, with the scale and shift of the norm before them, as one layer."""
    weight = torch.cat([linear.weight for linear in linears])
    biases: list[Tensor] = [linear.bias for linear in linears if linear.bias is not None]
    bias = torch.cat(biases) if biases else None
    if norm is not None:
        if getattr(norm, "bias", None) is not None:
            bias = F.linear(norm.bias, weight, bias)
        weight = weight * norm.weight
    return weight, bias
