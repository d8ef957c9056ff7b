"""Reading tokens through a network, one more token of a transformer in few calls.

A step of generation computes so little that calling its modules takes longer than the products.
``Step`` computes what ``Transformer.forward`` does, from weights that are joined and laid out once:
queries, keys and values are one product, and so are gate and up; the scale and shift of a norm are
part of the matrix after it; positions turn queries and keys by one matrix; matrices lie as a
product of few rows reads them fastest. What it gains is measured by tests/benchmarks/language.py.
The network knows nothing of it: ``Reader`` stands between it and whoever generates.

Shapes: B texts, D embedding, V vocabulary, H heads, G key-value heads, d = D / H.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.networks.fast import FastDropout, RMSNorm, attend
from zoo.networks.transformer import (
    MLP,
    Attention,
    Block,
    Cache,
    Rotary,
    SwiGLU,
    Transformer,
    rotate,
)

PLAIN = {
    nn.ModuleList,
    nn.Embedding,
    Rotary,
    FastDropout,
    Block,
    nn.LayerNorm,
    RMSNorm,
    Attention,
    nn.Identity,
    MLP,
    nn.GELU,
    SwiGLU,
    nn.Linear,
}  # what ``Step`` knows to compute
# Columns that a product takes at a time. So few rows take as long as reading the matrix from memory
# does, and a processor fetches ahead where it is read in one go: on a Zen 4 whole rows of a wide
# matrix took 1.6 times as long as strips of 32, 8 to 16 columns as long as those, 64 longer.
STRIP = 32


class Product(NamedTuple):
    """A matrix (inputs, outputs), cut into strips of columns, and what is added to its products."""

    strips: Tensor  # (n, inputs, columns); the last one filled up with zeros
    bias: Tensor | None  # (n, 1, columns)
    outputs: int

    def __call__(self, x: Tensor) -> Tensor:
        """(B, inputs) → (B, outputs)."""
        rows = x.expand(len(self.strips), *x.shape)
        if self.bias is None:
            y = torch.bmm(rows, self.strips)
        else:
            y = torch.baddbmm(self.bias, rows, self.strips)
        y = y.transpose(0, 1).flatten(1)
        return y if y.shape[1] == self.outputs else y[:, : self.outputs]


class Norm(NamedTuple):
    """A norm over D numbers without its scale and shift; RMSNorm's output has length 1, not √D."""

    size: int
    eps: float
    least: Tensor | None  # the length that ε comes to, √(D · ε); none for LayerNorm

    def __call__(self, x: Tensor) -> Tensor:
        """(…, D) → the same."""
        if self.least is None:
            return F.layer_norm(x, (self.size,), None, None, self.eps)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x / torch.hypot(length, self.least)


class Layer(NamedTuple):
    """The weights of one block."""

    norm1: Norm
    qkv: Product
    head_norm: tuple[Norm, Tensor] | None  # on queries and keys, and its scales (H + G, 1, d)
    proj: Product
    norm2: Norm
    up: Product  # gate and up where there is a gate, whose outputs come one behind the other
    parts: int  # how many of them there are
    down: Product


class Reader:
    """``network(tokens, cache)`` of any language network, by ``Step`` where that gives the same.

    Args:
        network: with ``forward(tokens, cache)``.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.modules = list(network.modules())[1:] if type(network) is Transformer else []
        self.cache: Any = None  # whose keys and values are those of the step's weights
        self.step: Step | None = None

    def __call__(self, tokens: Tensor, cache: Any) -> Tensor:
        """Logits (B, T, V) of the tokens (B, T) that follow those in the cache."""
        one_more = cache is not None and cache.seen > 0 and tokens.shape[1] == 1
        if not (one_more and self.modules and Step.serves(self.modules)):
            return self.network(tokens, cache)
        if cache.seen >= cache.length:
            return self.network(tokens, cache)  # which says what is wrong
        if self.step is None or self.cache is not cache:
            assert isinstance(self.network, Transformer)
            self.step, self.cache = Step(self.network), cache
        return self.step(tokens, cache)


class Step:
    """A transformer's forward of one token a text, behind those in a cache.

    Holds copies of the weights as they are when it is made, as a cache holds their keys and values.

    Args:
        network: whose weights are read, and for whose modules ``serves`` is true.
    """

    def __init__(self, network: Transformer) -> None:
        self.network = network
        self.blocks: list[Any] = list(network.blocks)
        self.layers = [_read(block) for block in self.blocks]
        self.norm = _read_norm(network.norm)
        size = self.blocks[0].attn.size
        self.identity = torch.eye(size, device=network.embed.weight.device)
        self.head = _join([network.head], network.norm)

    @staticmethod
    def serves(modules: list[nn.Module]) -> bool:
        """Whether these modules, in their modes of now, compute nothing but what ``Step`` does.

        False in training, with gradients, in half precision, with hooks or a forward put in a
        module's place, and with modules of another kind, such as adapters: those are to be called.
        """
        if torch.is_grad_enabled():
            return False
        for module in modules:
            if module.training or type(module) not in PLAIN:
                return False
            if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
                return False
        weight = next(modules[0].parameters())
        return weight.dtype == torch.float32 and not torch.is_autocast_enabled(weight.device.type)

    def __call__(self, tokens: Tensor, cache: Cache) -> Tensor:
        """Tokens (B, 1) → logits of the next (B, 1, V); the cache then has them too."""
        network = self.network
        start, stop = cache.seen, cache.seen + 1
        x = network.embed(tokens[:, 0])
        if network.positions is not None:
            x = x + network.positions.weight[start]
        turn = None
        if network.rotary is not None:  # as rotate is linear, a matrix does the same in one call
            turn = rotate(self.identity, network.rotary(start, stop))
        for number, (layer, block) in enumerate(zip(self.layers, self.blocks, strict=True)):
            attn, mlp = block.attn, block.mlp
            rows = layer.qkv(layer.norm1(x)).view(len(x), -1, 1, attn.size)
            qk, v = rows.split_with_sizes(
                [attn.num_heads + attn.num_kv_heads, attn.num_kv_heads], 1
            )
            if layer.head_norm is not None:
                norm, scales = layer.head_norm
                qk = norm(qk) * scales
            if turn is not None:
                qk = qk @ turn
            q, k = qk.split_with_sizes([attn.num_heads, attn.num_kv_heads], 1)
            seen = attend(q, *cache.extend(number, k, v))
            x = x + layer.proj(seen.flatten(1))
            inner = layer.up(layer.norm2(x)).chunk(layer.parts, 1)
            x = x + layer.down(mlp.activate(*inner))
        cache.seen = stop
        return self.head(self.norm(x))[:, None]


def _read(block: Any) -> Layer:
    attn, mlp = block.attn, block.mlp
    head_norm = None
    if not isinstance(attn.q_norm, nn.Identity):
        norms = [attn.q_norm] * attn.num_heads + [attn.k_norm] * attn.num_kv_heads
        scales = torch.stack([_scales(norm) for norm in norms])[:, None]
        head_norm = _read_norm(attn.q_norm), scales
    inner = mlp.inner()
    return Layer(
        _read_norm(block.norm1),
        _join([attn.q, attn.k, attn.v], block.norm1),
        head_norm,
        _join([attn.proj]),
        _read_norm(block.norm2),
        _join(inner, block.norm2),
        len(inner),
        _join([mlp.down]),
    )


def _read_norm(norm: Any) -> Norm:
    (size,) = norm.normalized_shape
    least = None
    if not isinstance(norm, nn.LayerNorm):
        least = norm.weight.new_tensor(math.sqrt(size * norm.eps))
    return Norm(size, norm.eps, least)


def _scales(norm: Any) -> Tensor:
    """What the output of a ``Norm`` is multiplied by."""
    if isinstance(norm, nn.LayerNorm):
        return norm.weight
    return norm.weight * math.sqrt(norm.normalized_shape[0])


def _join(linears: list[nn.Linear], norm: Any = None) -> Product:
    """Layers that read the same, and the norm in front of them, as one product."""
    weights: list[Tensor] = [linear.weight for linear in linears]
    matrix = torch.cat(weights)
    biases: list[Tensor] = [
        linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias
        for linear in linears
    ]
    bias = torch.cat(biases) if any(linear.bias is not None for linear in linears) else None
    if norm is not None:
        shift = getattr(norm, "bias", None)
        if shift is not None:
            bias = matrix @ shift + (0 if bias is None else bias)
        matrix = matrix * _scales(norm)
    outputs = len(matrix)
    columns = STRIP if matrix.device.type == "cpu" else outputs
    spare = -outputs % columns
    strips = F.pad(matrix, (0, 0, 0, spare)).view(-1, columns, matrix.shape[1]).mT
    if bias is not None:
        bias = F.pad(bias, (0, spare)).view(-1, 1, columns)
    return Product(strips.contiguous(), bias, outputs)
