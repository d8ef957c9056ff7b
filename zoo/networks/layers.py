"""What two or more networks share: remembering arguments, initialising, freezing."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, TypeVar

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class Network(nn.Module, PyTorchModelHubMixin):
    """A plain PyTorch module that remembers the arguments it was built with.

    Constructor arguments are JSON values, so that weights plus ``config`` are the whole model:
    ``type(net)(**net.config)`` is the same network with fresh weights. ``save_pretrained``,
    ``from_pretrained`` and ``push_to_hub`` come with it.
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

    @property
    def config(self) -> dict[str, Any]:
        """Constructor arguments by name, defaults included; JSON values only."""
        config = self._hub_mixin_config
        if not isinstance(config, dict):
            raise TypeError(f"{type(self).__name__} takes arguments that are not JSON values")
        for name, value in config.items():
            config[name] = _listed(value)
        return config


def _listed(value: Any) -> Any:
    """Lists for tuples, however deep (defaults): JSON knows lists only."""
    return [_listed(item) for item in value] if isinstance(value, list | tuple) else value


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


def init_transformer(module: nn.Module) -> None:
    """A transformer's initialisation, in place: N(0, 0.02) and zero biases.

    Devlin et al. 2019, section A.2, and Touvron et al. 2021 (DeiT). Convolutions of a stem: He (a
    ReLU follows), or as a linear layer where they have a bias and project patches.
    """
    for child in module.modules():
        if isinstance(child, nn.Conv2d) and child.bias is None:
            init_he(child)
        elif isinstance(child, nn.Linear | nn.Conv2d):
            nn.init.normal_(child.weight, std=0.02)
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
    frozen = []
    for name, module in network.named_modules():
        if isinstance(module, _NormBase) and not any(_below(name, prefix) for prefix in keep):
            # An attribute of the instance hides the method: parents call it on their children.
            object.__setattr__(module, "train", partial(_stay_in_eval, module))
            module.train()
            frozen.append(name)
    # By name as well: SyncBatchNorm puts new modules in the place of the frozen ones.
    object.__setattr__(network, "train", partial(_train_but, network, frozen))
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


def _train_but(network: nn.Module, frozen: list[str], mode: bool = True) -> nn.Module:
    type(network).train(network, mode)
    for name in frozen:
        type(network).train(network.get_submodule(name), False)
    return network


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
