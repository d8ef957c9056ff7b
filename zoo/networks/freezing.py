"""Freezing a backbone, so that its BatchNorm statistics stand still with its parameters."""

from __future__ import annotations

from functools import partial
from typing import TypeVar

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def freeze(model: ModuleT, keep: tuple[str, ...] | None = None) -> ModuleT:
    """Freezes a backbone, in place: its parameters, and BatchNorm's running statistics with them.

    A frozen normalization stays in evaluation mode whatever ``train()`` is called on, so that a
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
