"""One more token of each text through a transformer, in few calls.

A step of generation computes so little that calling its modules takes longer than the products.
``Step`` computes what ``Transformer.forward`` does, from weights that are joined and laid out once:
queries, keys and values are one product, and so are gate and up; the scale and shift of a norm are
part of the matrix behind it; matrices lie as a product of few rows reads them fastest. What it
gains is measured by tests/benchmarks/language.py.

Shapes: B texts, D embedding, V vocabulary, H heads, G key-value heads, d = D / H.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.networks.generation import Cache
from zoo.networks.layers import Dropout, RMSNorm, attend, inverse_rms
from zoo.networks.rotary import Rotary, rotate
from zoo.networks.transformer_blocks import MLP, Attention, Block, SwiGLU

if TYPE_CHECKING:
    from zoo.networks.transformer import Transformer

PLAIN = {
    nn.ModuleList,
    nn.Embedding,
    Rotary,
    Dropout,
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


class Product(NamedTuple):
    """A matrix (inputs, outputs) and what is added to the product with it."""

    matrix: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        """(B, inputs) → (B, outputs)."""
        if self.bias is None:
            return x @ self.matrix
        return torch.addmm(self.bias, x, self.matrix)

    def onto(self, rest: Tensor, x: Tensor) -> Tensor:
        """The product of x, added to (B, outputs)."""
        return torch.addmm(rest if self.bias is None else rest + self.bias, x, self.matrix)


class Layer(NamedTuple):
    """The weights of one block."""

    qkv: Product
    head_scales: Tensor | None  # of the norms on queries and keys, (H + G, 1, d)
    proj: Product
    up: Product  # gate and up where there is a gate
    down: Product


class Step:
    """A transformer's forward of one token a text, behind those in a cache.

    Holds copies of the weights as they are when it is made, as a cache holds their keys and values.

    Args:
        network: whose weights are read.
        modules: its modules, for which ``serves`` is true.
    """

    def __init__(self, network: Transformer, modules: list[nn.Module]) -> None:
        self.network, self.modules = network, modules
        self.blocks: list[Any] = list(network.blocks)
        self.layers = [_read(block) for block in self.blocks]
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
        turn = None if network.rotary is None else network.rotary(start, stop)
        for number, (layer, block) in enumerate(zip(self.layers, self.blocks, strict=True)):
            attn, mlp = block.attn, block.mlp
            rows = layer.qkv(_standardise(x, block.norm1)).view(len(x), -1, 1, attn.size)
            qk, v = torch.split(rows, [attn.heads + attn.kv_heads, attn.kv_heads], 1)
            if layer.head_scales is not None:
                qk = _standardise(qk, attn.q_norm) * layer.head_scales
            if turn is not None:
                qk = rotate(qk, turn)
            q, k = torch.split(qk, [attn.heads, attn.kv_heads], 1)
            seen = attend(q, *cache.extend(number, k, v))
            x = layer.proj.onto(x, seen.flatten(1))
            inner = torch.split(layer.up(_standardise(x, block.norm2)), mlp.hidden, 1)
            x = layer.down.onto(x, mlp.activate(*inner))
        cache.seen = stop
        return self.head(_standardise(x, network.norm))[:, None]


def _read(block: Any) -> Layer:
    attn, mlp = block.attn, block.mlp
    scales = None
    if not isinstance(attn.q_norm, nn.Identity):
        norms = [attn.q_norm] * attn.heads + [attn.k_norm] * attn.kv_heads
        scales = torch.stack([norm.weight for norm in norms])[:, None]
    return Layer(
        _join([attn.q, attn.k, attn.v], block.norm1),
        scales,
        _join([attn.proj]),
        _join(mlp.inner(), block.norm2),
        _join([mlp.down]),
    )


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
        matrix = matrix * norm.weight
    return Product(matrix.t().contiguous(), bias)


def _standardise(x: Tensor, norm: Any) -> Tensor:
    """A norm without its scale and shift."""
    if isinstance(norm, nn.LayerNorm):
        return F.layer_norm(x, norm.normalized_shape, None, None, norm.eps)
    return x * inverse_rms(x, norm.eps)
