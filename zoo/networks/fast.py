"""Operations that equal one of torch's and are faster where a recipe trains.

Each names torch's own call, which it is everywhere else, and wherever a call is recorded: under
export, compile and tracing, and in a mode of torch's functions such as the audit's. What a recipe's
whole training step loses with torch's call is measured by ``python tests/benchmarks/fast.py``; its
numbers below are of two threads of an AMD EPYC that has AVX2 only, 2026-11-28, where equal code
differs by up to 5 %. Such a processor imitates bfloat16, so that recipes train in float32 there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import has_torch_function


def recorded(x: Tensor) -> bool:
    """Whether a call is recorded, to be run elsewhere or to be looked at."""
    tracing = torch.jit.is_tracing()  # type: ignore[no-untyped-call]
    return tracing or torch.compiler.is_compiling() or has_torch_function((x,))


def on_cpu(x: Tensor) -> bool:
    """Whether a call computes now, and on a CPU."""
    return not recorded(x) and x.device.type == "cpu"


class PooledConv2d(nn.Conv2d):
    """A 3 × 3 convolution and 2 × 2 average pooling after it, as one convolution of stride 2.

    ``F.avg_pool2d(F.conv2d(x, weight, bias, padding=1), 2)``. Both are linear, so the mean of the
    filter at four places, 4 × 4 large, gives the same in 16 products where the two of them take 36
    (as in the code of Karras et al., ICLR 2018). Parameters are those of the 3 × 3 convolution.
    With torch's two gan_fmnist's step takes 1.16 times as long on a CPU in float32, and 1.05 times
    in bfloat16; tests/benchmarks/convolutions.py has it alone.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, input: Tensor) -> Tensor:
        """(B, in_channels, H, W) → (B, out_channels, H / 2, W / 2)."""
        if not on_cpu(input):
            return F.avg_pool2d(super().forward(input), 2)
        return F.conv2d(input, four_places(self.weight) / 4, self.bias, stride=2, padding=1)


def four_places(weight: Tensor) -> Tensor:
    """The sum of filters (O, C, 3, 3) at the four corners of 4 × 4: (O, C, 4, 4)."""
    rows = F.pad(weight, (0, 0, 0, 1)) + F.pad(weight, (0, 0, 1, 0))
    return F.pad(rows, (0, 1)) + F.pad(rows, (1, 0))


def dropout(x: Tensor, rate: float, training: bool = True) -> Tensor:
    """Drops values at ``rate`` and scales the others to make up for it (Srivastava et al. 2014).

    ``F.dropout``; on a CPU 16 random bits decide on a value in place of a Bernoulli draw, which is
    slow there. The rate is exact to 1/65536, and so is the scale that keeps the expectation. With
    torch's a call of vit_fmnist's MLP takes 2.8 times as long in bfloat16 (Zen 4, 2026-11-21,
    tests/benchmarks/dropout.py), its step in float32 1.12 times.

    Args:
        x: any shape, floating point.
        rate: share that is dropped, in [0, 1).
        training: the identity where false.
    """
    if not training or not 0 < rate < 1 or not on_cpu(x):
        return F.dropout(x, rate, training)
    words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    bits = words.view(torch.int16)[: x.numel()].view(x.shape)
    kept = min(max(round((1 - rate) * 2**16), 1), 2**16 - 1)  # of the 65536 values of 16 bits
    return x * (bits < kept - 2**15).to(x.dtype).mul_(2**16 / kept)


class FastDropout(nn.Dropout):
    """``nn.Dropout`` by ``dropout``."""

    def forward(self, input: Tensor) -> Tensor:
        """Any shape → the same."""
        return dropout(input, self.p, self.training)


class _RMSNorm(torch.autograd.Function):
    """RMSNorm over the last dimension, in few passes over memory.

    With s = (mean(x²) + ε)^(-1/2) and y = x · s · w, the gradient of x is
    s · (g · w) - x · s³ · mean(g · w · x).
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        precise = torch.promote_types(x.dtype, torch.float32)
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=precise)
        mean = torch.addcmul(length.new_full((), eps), length, length, value=1 / x.shape[-1])
        scale = mean.rsqrt().to(x.dtype)
        return x * scale * weight.to(x.dtype), scale

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, weight, ctx.eps = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(x, weight, output[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        size = x.shape[-1]
        if torch.is_grad_enabled():  # to be differentiated once more: nothing in place
            scale = (x.square().mean(-1, keepdim=True) + ctx.eps).rsqrt()
            weighed = gradient * weight.to(x.dtype)
            by_x = weighed * scale - x * scale**3 * (weighed * x).mean(-1, keepdim=True)
            by_weight = (gradient * x * scale).reshape(-1, size).sum(0)
            return by_x, by_weight.to(weight.dtype), None
        product = (gradient * x).reshape(-1, size)
        by_weight = (scale.reshape(1, -1) @ product)[0]
        mean = (product @ weight.to(x.dtype)).view(scale.shape) / size
        by_x = (gradient * weight.to(x.dtype)).mul_(scale).addcmul_(x, mean * scale**3, value=-1)
        return by_x, by_weight.to(weight.dtype), None


class RMSNorm(nn.RMSNorm):
    """``nn.RMSNorm`` (Zhang & Sennrich 2019), faster where it trains on a CPU.

    torch has no kernel of its own for it there: with its operations transformer_shakespeare's step
    takes 1.08 times as long in float32 and 1.16 times in bfloat16; tests/benchmarks/language.py has
    it alone.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) → the same."""
        trains = torch.is_grad_enabled() and self.weight is not None and self.weight.requires_grad
        if (
            not (trains and x.requires_grad and on_cpu(x))
            or self.eps is None
            or len(self.normalized_shape) > 1
        ):
            weight: Tensor | None = self.weight
            if weight is None or weight.dtype == x.dtype or not on_cpu(x):
                return super().forward(x)
            # On a CPU torch warns of two types, for which it has no kernel; autocast has them.
            return F.rms_norm(x, self.normalized_shape, weight.to(x.dtype), self.eps)
        y: Tensor = _RMSNorm.apply(x, self.weight, self.eps)[0]
        return y


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    drop_rate: float = 0.0,
    causal: bool = False,
    mask: Tensor | None = None,
) -> Tensor:
    """Computes attention, with dropout on its weights (Vaswani et al. 2017, section 3.2.1).

    ``F.scaled_dot_product_attention``; on a CPU that trains in half precision or with dropout the
    plain product. Its reason is bfloat16: there torch's call took 2.4 to 6.2 times as long (Zen 4,
    2026-11-21, tests/benchmarks/attention.py); in float32 vit_fmnist's step 1.09 times.

    Args:
        q: queries (B, H, T, d).
        k, v: keys and values (B, G, S, d), of which each serves H / G heads.
        drop_rate: rate of the weights; 0 in evaluation.
        causal: no query sees a key after its own place.
        mask: (T, S), true where a query sees a key.

    Returns:
        (B, H, T, d).
    """
    grouped = bool(q.shape[1] != k.shape[1])  # a tensor while torch.jit traces
    slow = on_cpu(q) and (drop_rate > 0 or q.dtype != torch.float32)
    if not (slow and torch.is_grad_enabled()):
        return F.scaled_dot_product_attention(
            q, k, v, mask, dropout_p=drop_rate, is_causal=causal, enable_gqa=grouped
        )
    if grouped:
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    weights = (q * q.shape[3] ** -0.5) @ k.transpose(2, 3)
    if causal:
        mask = torch.ones(weights.shape[2:], dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        # Added, and not filled in: adding costs nothing on the way back.
        weights = weights + weights.new_zeros(mask.shape).masked_fill(~mask, -torch.inf)
    # Without autocast, which would make a copy in single precision: the kernel computes in it
    # anyway.
    with torch.autocast("cpu", enabled=False):
        weights = weights.softmax(3)
    return dropout(weights, drop_rate) @ v
