"""What two or more networks share: remembering and checking arguments, initialising, dropping."""

from __future__ import annotations

import math
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import handle_torch_function, has_torch_function


class Network(nn.Module, PyTorchModelHubMixin):
    """A plain PyTorch module that remembers the arguments it was built with.

    Constructor arguments are JSON values, so that weights plus ``config`` are the whole model:
    ``type(net)(**net.config)`` is the same network with fresh weights. ``save_pretrained``,
    ``from_pretrained`` and ``push_to_hub`` come with it.
    """

    @property
    def config(self) -> dict[str, Any]:
        """Constructor arguments by name, defaults included; JSON values only."""
        config = self._hub_mixin_config
        if not isinstance(config, dict):
            raise TypeError(f"{type(self).__name__} takes arguments that are not JSON values")
        for name, value in config.items():
            config[name] = _listed(value)
        return config


class ImageNetwork(Network):
    """A network of images with a last layer that can be renewed, as timm's networks have it.

    A subclass has ``forward_features(x)`` and ``forward_head(features, pre_logits)``: the split is
    where fine-tuning, feature extraction and MC dropout take hold.
    """

    num_classes: int
    num_features: int
    classifier_name = "fc"  # the attribute that holds the last layer, as the reference names it

    def get_classifier(self) -> nn.Module:
        """The last layer, as timm names it."""
        return self.get_submodule(self.classifier_name)

    def make_classifier(self, num_classes: int) -> nn.Module:
        """A fresh last layer; 0 classes make none."""
        head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        init_he(head)
        return head

    def reset_classifier(self, num_classes: int) -> None:
        """Replaces the last layer by a fresh one for ``num_classes``; 0 removes it."""
        device = next(self.parameters()).device
        setattr(self, self.classifier_name, self.make_classifier(num_classes).to(device))
        self.num_classes = self.config["num_classes"] = num_classes


def _listed(value: Any) -> Any:
    """Lists for tuples, however deep (defaults): JSON knows lists only."""
    return [_listed(item) for item in value] if isinstance(value, list | tuple) else value


def check_choice(name: str, value: str, *choices: str) -> None:
    """Raises ValueError for a ``value`` that is none of the choices."""
    if value not in choices:
        *most, last = choices
        raise ValueError(f"{name} is {value!r}: choose {', '.join(most)} or {last}")


def check_sizes(num_classes: int = 0, **sizes: int) -> None:
    """Raises ValueError for fewer than 0 classes, or another size below 1, by its name."""
    if num_classes < 0:
        raise ValueError(f"num_classes is {num_classes}: it must be at least 0")
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} is {size}: it must be at least 1")


def check_rates(**rates: float) -> None:
    """Raises ValueError for a drop rate outside [0, 1), by its name."""
    for name, rate in rates.items():
        if not 0 <= rate < 1:
            raise ValueError(f"{name} is {rate}: it must be at least 0 and below 1")


def init_he(module: nn.Module) -> None:
    """He initialisation of every convolution in ``module``, in place; linear layers as torch does.

    Convolutions: normal, variance 2 / fan_out, which keeps the variance of the gradients through
    a ReLU (He et al. 2015, section 2.2); fan_out is that of one group. Norm layers: scale 1,
    shift 0. Linear layers: uniform in ±1/√fan_in, zero bias, so that first logits are small.
    """
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            positions = child.kernel_size[0] * child.kernel_size[1]
            fan_out = positions * child.out_channels / child.groups
            nn.init.normal_(child.weight, std=math.sqrt(2 / fan_out))
            if child.bias is not None:
                nn.init.zeros_(child.bias)
        elif isinstance(child, nn.BatchNorm2d):
            nn.init.ones_(child.weight)
            nn.init.zeros_(child.bias)
        elif isinstance(child, nn.Linear):
            bound = 1 / math.sqrt(child.in_features)
            nn.init.uniform_(child.weight, -bound, bound)
            nn.init.zeros_(child.bias)


def init_xavier(module: nn.Module) -> None:
    """Xavier initialisation of every convolution and linear layer in ``module``, in place.

    Normal, variance 2 / (fan_in + fan_out), which keeps the variance of activations and gradients
    through layers that are linear near zero, such as tanh (Glorot & Bengio 2010, section 4.2.1);
    biases 0.
    """
    for child in module.modules():
        if isinstance(child, nn.Conv2d | nn.Linear):
            nn.init.xavier_normal_(child.weight)
            if child.bias is not None:
                nn.init.zeros_(child.bias)


def init_orthogonal(module: nn.Module) -> None:
    """Orthogonal initialisation of the recurrent layers in ``module``, in place.

    Every gate's recurrent matrix keeps the length of the state, however many steps it is applied
    (Saxe et al. 2014, section 3; Henaff et al. 2016); input matrices as Xavier has them; biases 0,
    an LSTM's forget gate 1, so that it starts by remembering (Jozefowicz et al. 2015, section 2.3).
    """
    for child in module.modules():
        if not isinstance(child, nn.RNNBase):
            continue
        for name, parameter in child.named_parameters():
            # Stacked along the first dimension.
            gates = torch.split(parameter.detach(), child.hidden_size)
            for gate in gates:
                if "weight_hh" in name:
                    nn.init.orthogonal_(gate)
                elif "weight_ih" in name:
                    nn.init.xavier_normal_(gate)
                else:
                    nn.init.zeros_(gate)
            if isinstance(child, nn.LSTM) and name.startswith("bias_ih"):
                nn.init.ones_(gates[1])  # input, forget, cell, output


def init_transformer(module: nn.Module) -> None:
    """A transformer's initialisation, in place: N(0, 0.02) and zero biases.

    Devlin et al. 2019, section A.2, and Touvron et al. 2021 (DeiT). Convolutions of a stem: He (a
    ReLU follows), or as a linear layer where they have a bias and project patches.
    """
    for child in module.modules():
        if isinstance(child, nn.Conv2d) and child.bias is None:
            init_he(child)
        elif isinstance(child, nn.Embedding):
            nn.init.normal_(child.weight, std=0.02)
        elif isinstance(child, nn.Linear | nn.Conv2d):
            nn.init.normal_(child.weight, std=0.02)
            if child.bias is not None:
                nn.init.zeros_(child.bias)


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
    return x * spread.view(len(x), *x.shape[2:], -1).permute(0, 3, 1, 2)


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


class Dropout(nn.Dropout):
    """``nn.Dropout`` by ``dropout``, for networks that train on a CPU."""

    def forward(self, input: Tensor) -> Tensor:
        """Any shape → the same."""
        return dropout(input, self.p, self.training)


class GaussianDropout(nn.Module):
    """Multiplies by noise N(1, rate / (1 - rate)), whose variance is that of dropout at ``rate``.

    Srivastava et al. 2014, section 10. The identity in evaluation and at rate 0. In front of a
    BatchNorm it shifts the variance just as dropout does.
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
        scale = (length.square() / x.shape[-1] + eps).rsqrt().to(x.dtype)
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
            return super().forward(x)
        y: Tensor = _RMSNorm.apply(x, self.weight, self.eps)[0]
        return y


def make_norm(kind: str, dim: int, eps: float = 1e-6, bias: bool = True) -> nn.Module:
    """``layernorm``, with or without a bias, or ``rmsnorm``, over the last dimension.

    Raises:
        ValueError: another kind.
    """
    check_choice("norm", kind, "layernorm", "rmsnorm")
    return nn.LayerNorm(dim, eps, bias=bias) if kind == "layernorm" else RMSNorm(dim, eps)


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


def adapt_input(weight: Any, in_channels: int) -> Any:
    """A first convolution's weight (O, C, h, w) for another number of input channels.

    More channels repeat the old ones cyclically, each divided by how often it occurs; fewer sum
    what they replace. So an image whose channels repeat, or stand for several, gives the same
    output.
    """
    return torch.einsum("nc,ochw->onhw", _shares(weight.shape[1], in_channels).to(weight), weight)


def adapt_statistics(values: list[float], in_channels: int) -> list[float]:
    """A mean or standard deviation a channel, for another number of channels: see adapt_input."""
    shares = _shares(len(values), in_channels)
    averages = shares / shares.sum(1, keepdim=True)
    return [round(value, 6) for value in (averages @ torch.tensor(values)).tolist()]


def _shares(old: int, new: int) -> Tensor:
    """(new, old): how much of each old channel a new one takes."""
    shares = torch.zeros(new, old)
    for index in range(max(old, new)):
        shares[index % new, index % old] = 1
    return shares / shares.sum(0)
