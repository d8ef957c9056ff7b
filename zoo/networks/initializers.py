"""Initial weights: He's, Xavier's, orthogonal ones and a transformer's."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

# What draws the weight of a layer, by name: ``init_weights`` has them, for experiments.
DRAWS: dict[str, Callable[[Tensor], Any]] = {
    "zero": nn.init.zeros_,
    "normal": partial(nn.init.normal_, std=0.01),
    "xavier": nn.init.xavier_normal_,
    "he": partial(nn.init.kaiming_normal_, nonlinearity="relu"),
    "orthogonal": nn.init.orthogonal_,
    "transformer": partial(nn.init.normal_, std=0.02),
}


def init_weights(module: nn.Module, kind: str) -> None:
    """Draws every convolution and linear layer in ``module`` the same way, in place; biases 0.

    ``init_he`` and the others below treat some layers otherwise, as the papers and shipped
    networks do; this one shows what a way of drawing does by itself.

    Args:
        module: its norms stay as they are.
        kind: ``zero``; ``normal``, N(0, 0.01²) (Krizhevsky et al. 2012, section 5); ``xavier``,
            normal, variance 2 / (fan_in + fan_out) (Glorot & Bengio 2010, section 4.2.1); ``he``,
            normal, variance 2 / fan_in (He et al. 2015, section 2.2); ``orthogonal`` (Saxe et al.
            2014, section 3); ``transformer``, N(0, 0.02²) (Radford et al. 2018, section 4.1).
    """
    for child in module.modules():
        if isinstance(child, nn.Conv2d | nn.Linear):
            DRAWS[kind](child.weight)
            if child.bias is not None:
                nn.init.zeros_(child.bias)


def init_he(module: nn.Module) -> None:
    """Applies He initialization to every convolution of ``module``; linear layers keep torch's.

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
    """Applies Xavier initialization to every convolution and linear layer of ``module``.

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
    """Applies orthogonal initialization to the recurrent layers of ``module``.

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
    """Initializes a transformer, in place: N(0, 0.02) and zero biases.

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
