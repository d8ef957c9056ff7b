"""What two or more networks share: remembering arguments, initialising, freezing."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, TypeVar

from huggingface_hub import PyTorchModelHubMixin
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class Network(nn.Module, PyTorchModelHubMixin):
    """A plain PyTorch module that remembers the arguments it was built with.

    Constructor arguments are JSON values, so that weights plus ``config`` are the whole model:
    ``type(net)(**net.config)`` is the same network with fresh weights. ``save_pretrained``,
    ``from_pretrained`` and ``push_to_hub`` come with it.
    """

    num_classes: int

    @property
    def config(self) -> dict[str, Any]:
        """Constructor arguments by name, defaults included; JSON values only."""
        config = self._hub_mixin_config
        if not isinstance(config, dict):
            raise TypeError(f"{type(self).__name__} takes arguments that are not JSON values")
        for name, value in config.items():
            if isinstance(value, tuple):  # a default; JSON knows lists only
                config[name] = list(value)
        return config


def init_he(module: nn.Module) -> None:
    """He initialisation of every convolution and linear layer in ``module``, in place.

    Convolutions: normal, variance 2 / fan_out, which keeps the variance of the gradients through
    a ReLU (He et al. 2015, sections 2.2 and 2.3); fan_out is that of one group. Norm layers: scale
    1, shift 0. Linear layers: uniform in ±1/√fan_in, zero bias: no ReLU follows a head, so it has
    no factor 2.
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


def init_transformer(module: nn.Module) -> None:
    """A transformer's initialisation, in place: N(0, 0.02) cut off at two deviations, zero biases.

    Devlin et al. 2019 and Dosovitskiy et al. 2021. Convolutions of a stem: He (a ReLU follows), or
    as a linear layer where they have a bias and project patches. Norms: scale 1, shift 0.
    """
    for child in module.modules():
        if isinstance(child, nn.Conv2d) and child.bias is None:
            init_he(child)
        elif isinstance(child, nn.Linear | nn.Conv2d):
            nn.init.trunc_normal_(child.weight, std=0.02)
            if child.bias is not None:
                nn.init.zeros_(child.bias)


def make_norm(kind: str, dim: int) -> nn.Module:
    """``layernorm`` or ``rmsnorm`` over the last dimension, ε 10⁻⁶.

    Raises:
        ValueError: another kind.
    """
    if kind == "layernorm":
        return nn.LayerNorm(dim, eps=1e-6)
    if kind == "rmsnorm":
        return nn.RMSNorm(dim, eps=1e-6)
    raise ValueError(f"norm is {kind!r}: choose layernorm or rmsnorm")


def adapt_input(weight: Any, in_channels: int) -> Any:
    """A first convolution's weight (O, C, h, w) for another number of input channels.

    Channels are repeated cyclically and scaled by C / in_channels, so that an image whose new
    channels repeat the old ones gives the same output (as timm does).
    """
    old = weight.shape[1]
    index = [channel % old for channel in range(in_channels)]
    return weight[:, index] * (old / in_channels)


def freeze(model: ModuleT, keep: tuple[str, ...] | None = None) -> ModuleT:
    """Freezes a backbone, in place: its parameters, and BatchNorm's running statistics with them.

    A frozen normalisation stays in evaluation mode whatever ``train()`` is called on, so that a
    fit leaves its buffers bit-identical. Dropout of the backbone goes on as the mode says.

    Args:
        model: a network, or a task that has one.
        keep: prefixes of parameter names that stay trainable; the classifier
            (``get_classifier()``, or ``fc``, ``classifier``, ``head``) where none are given.

    Returns:
        The model itself.

    Raises:
        ValueError: the classifier cannot be found, or a prefix matches nothing.
    """
    network = getattr(model, "network", model)
    if keep is None:
        keep = (_classifier_name(network),)
    for prefix in keep:
        if not any(_below(name, prefix) for name, _ in network.named_modules()):
            raise ValueError(f"no module of the network is named {prefix!r}")
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(any(_below(name, prefix) for prefix in keep))
    for name, module in network.named_modules():
        if isinstance(module, _NormBase) and not any(_below(name, prefix) for prefix in keep):
            # An attribute of the instance hides the method: parents call it on their children.
            object.__setattr__(module, "train", partial(_stay_in_eval, module))
            module.train()
    return model


def unfreeze(model: ModuleT) -> ModuleT:
    """Undoes ``freeze``, in place: everything trains again, in the mode of the whole model."""
    network = getattr(model, "network", model)
    network.requires_grad_(True)
    for module in network.modules():
        module.__dict__.pop("train", None)
    network.train(network.training)
    return model


def _stay_in_eval(module: nn.Module, mode: bool = True) -> nn.Module:
    return nn.Module.train(module, False)


def _below(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def _classifier_name(network: nn.Module) -> str:
    if get_classifier := getattr(network, "get_classifier", None):
        classifier = get_classifier()
        for name, module in network.named_modules():
            if module is classifier and name:
                return name
    for name in ("fc", "classifier", "head"):
        if isinstance(getattr(network, name, None), nn.Module):
            return name
    raise ValueError(
        f"cannot tell the classifier of {type(network).__name__}: name what stays trainable, "
        "freeze(model, keep=('my_head',))"
    )
