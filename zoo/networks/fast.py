"""Operations that equal one of torch's and are faster somewhere."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import handle_torch_function, has_torch_function


def global_average(x: Tensor) -> Tensor:
    """The mean of each channel over all positions: (B, C, H, W) → (B, C).

    On a CPU as a product with ones where the memory format is channels_last: the gradient of a mean
    has another format, and everything behind it then takes up to ten times as long.
    """
    positions = x.shape[2] * x.shape[3]
    if x.device.type != "cpu" or not x.is_contiguous(memory_format=torch.channels_last):
        return x.mean((2, 3))
    rows = x.permute(0, 2, 3, 1).flatten(1, 2)  # (B, H · W, C), no copy
    return (rows.new_ones(1, 1, positions) @ rows)[:, 0] / positions


def scale_channels(x: Tensor, gate: Tensor) -> Tensor:
    """Each channel times its gate: (B, C, H, W) and (B, C) → (B, C, H, W).

    On a CPU and in channels_last the gate is spread by a product with ones, for the reason that
    ``global_average`` has: its gradient is then a product too.
    """
    if x.device.type != "cpu" or not x.is_contiguous(memory_format=torch.channels_last):
        return x * gate[:, :, None, None]
    spread = gate.new_ones(1, x.shape[2] * x.shape[3], 1) @ gate[:, None]  # (B, H · W, C)
    return x * spread.view(x.shape[0], *x.shape[2:], -1).permute(0, 3, 1, 2)


class SiLU(nn.SiLU):
    """``nn.SiLU``, in place where nothing is to be differentiated: a prediction is faster by that.

    What it overwrites is a BatchNorm's or a convolution's output, which nobody else reads.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Any shape → the same."""
        return F.silu(input, inplace=not torch.is_grad_enabled())


class DepthwiseConv2d(nn.Conv2d):
    """``nn.Conv2d`` with one filter for each channel, no bias, and padding by half the kernel.

    A CPU has no fast gradient for a stride in half precision. There it computes the whole
    convolution and takes every second row and column, in a fraction of the time.
    """

    def __init__(self, channels: int, kernel: int, stride: int) -> None:
        super().__init__(
            channels, channels, kernel, stride, kernel // 2, groups=channels, bias=False
        )

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) → (B, C, H / stride, W / stride)."""
        half = input.dtype.itemsize == 2 or torch.is_autocast_enabled("cpu")
        slow = input.device.type == "cpu" and half and self.stride != (1, 1)
        if not (slow and torch.is_grad_enabled()):
            return super().forward(input)
        whole = F.conv2d(input, self.weight, None, 1, self.padding, self.dilation, self.groups)
        return whole[:, :, :: self.stride[0], :: self.stride[1]]


class _Conv3x3(nn.Conv2d):
    """What the convolutions below are by their parameters: 3 × 3, padded, with a bias."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)


class PooledConv2d(_Conv3x3):
    """A 3 × 3 convolution and 2 × 2 average pooling behind it, as one convolution of stride 2.

    Both are linear, so the mean of the filter at four places, 4 × 4 large, gives the same in 16
    products where the two of them take 36 (as in the code of Karras et al., ICLR 2018). Parameters
    are those of the 3 × 3 convolution.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, in_channels, H, W) → (B, out_channels, H / 2, W / 2)."""
        return F.conv2d(input, _four_places(self.weight) / 4, self.bias, stride=2, padding=1)


class UpsampledConv2d(_Conv3x3):
    """Nearest upsampling by two and a 3 × 3 convolution behind it, as one transposed convolution.

    Each output sees four inputs, some of them more than once: four products where the two of them
    take nine. Otherwise as ``PooledConv2d``.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, in_channels, H, W) → (B, out_channels, 2 H, 2 W)."""
        weight = _four_places(self.weight).flip(2, 3).transpose(0, 1)
        return F.conv_transpose2d(input, weight, self.bias, stride=2, padding=1)


class PixelConv2d(_Conv3x3):
    """A 3 × 3 convolution from many channels to an image's few.

    On a CPU and in channels_last it is one product, what each position adds to the nine around it,
    and their sum: kernels for convolutions are made for more channels to come out.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, in_channels, H, W) → (B, out_channels, H, W)."""
        last = input.is_contiguous(memory_format=torch.channels_last)
        if input.device.type != "cpu" or not last:
            return super().forward(input)
        assert self.bias is not None
        filters = self.weight.flip(2, 3).transpose(0, 1).flatten(1)  # (C, 9 · out_channels)
        added = input.permute(0, 2, 3, 1).flatten(1, 2) @ filters  # (B, H · W, 9 · out_channels)
        summed = F.fold(added.transpose(1, 2), input.shape[2:], 3, padding=1)
        return summed + self.bias[:, None, None]


def _four_places(weight: Tensor) -> Tensor:
    """The sum of filters (O, C, 3, 3) at the four corners of 4 × 4: (O, C, 4, 4)."""
    rows = F.pad(weight, (0, 0, 0, 1)) + F.pad(weight, (0, 0, 1, 0))
    return F.pad(rows, (0, 1)) + F.pad(rows, (1, 0))


def dropout(x: Tensor, rate: float, training: bool = True) -> Tensor:
    """Dropout (Srivastava et al. 2014): values are zero at ``rate``, the others scaled to make up.

    torch's own, but on a CPU its mask is dear: there 16 random bits decide on a value in place of a
    Bernoulli draw (tests/benchmarks/dropout.py). The rate is exact to 1/65536, and so is the scale
    that keeps the expectation.

    Args:
        x: any shape, floating point.
        rate: share that is dropped, in [0, 1).
        training: the identity where false.
    """
    if has_torch_function((x,)):  # whoever records a forward sees one call, as of torch's own
        result: Tensor = handle_torch_function(dropout, (x,), x, rate, training)
        return result
    if not training or not 0 < rate < 1 or x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, rate, training)
    words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    bits = words.view(torch.int16)[: x.numel()].view(x.shape)
    kept = min(max(round((1 - rate) * 2**16), 1), 2**16 - 1)  # of the 65536 values of 16 bits
    return x * (bits < kept - 2**15).to(x.dtype).mul_(2**16 / kept)


class FastDropout(nn.Dropout):
    """``nn.Dropout`` by ``dropout``, for networks that train on a CPU."""

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

    torch has no kernel of its own for it there; how much it gains is measured by
    tests/benchmarks/language.py.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(…, D) → the same."""
        trains = torch.is_grad_enabled() and self.weight is not None and self.weight.requires_grad
        if (
            not (trains and x.requires_grad and x.device.type == "cpu")
            or self.eps is None
            or len(self.normalized_shape) > 1
            or torch.compiler.is_compiling()
            or has_torch_function((x,))  # whoever records a forward sees torch's own call
        ):
            # Under autocast torch has a fused kernel for a weight of the input's type only.
            weight = None if self.weight is None else self.weight.to(x.dtype)
            return F.rms_norm(x, self.normalized_shape, weight, self.eps)
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
    """Attention over values, with dropout on its weights (Vaswani et al. 2017, section 3.2.1).

    torch's fused kernel, but on a CPU that trains in half precision or with dropout the plain
    product: there the fused one takes up to six times as long (tests/benchmarks/attention.py).

    Args:
        q: queries (B, H, T, d).
        k, v: keys and values (B, G, S, d), of which each serves H / G heads.
        drop_rate: of the weights; 0 in evaluation.
        causal: no query sees a key after its own place.
        mask: (T, S), true where a query sees a key.

    Returns:
        (B, H, T, d).
    """
    grouped = q.shape[1] != k.shape[1]
    slow = q.device.type == "cpu" and (drop_rate > 0 or q.dtype != torch.float32)
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
