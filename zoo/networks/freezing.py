"""Freezing a backbone, so that its BatchNorm statistics stand still with its parameters."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any, TypeVar

from timm.models import group_parameters
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from zoo.core.text import nearest
from zoo.networks.base import classifier_name

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def freeze(
    model: ModuleT, keep: tuple[str, ...] | None = None, *, through: str | None = None
) -> ModuleT:
    """Freezes a backbone, in place: its parameters and BatchNorm's running statistics.

    A frozen normalization stays in evaluation mode whatever ``train()`` is called on, so that a
    fit leaves its buffers bit-identical. Dropout of the backbone follows the module's mode.

    Args:
        model: a network, or a task that has one.
        keep: prefixes of parameter names that stay trainable; the classifier
            (``get_classifier()``, or ``fc``, ``classifier``, ``head``) where none are given.
        through: freezes from the input up to this stage or block, and nothing after it.

    Returns:
        The model itself.

    Raises:
        ValueError: the classifier cannot be found, or a name matches nothing.
    """
    network = getattr(model, "network", model)
    modules = [name for name, _ in network.named_modules() if name]
    for name in (*(keep or ()), *([through] if through else ())):
        if name not in modules:
            raise ValueError(f"no module of the network is named {name!r}{nearest(name, modules)}")
    if through is not None:
        frozen = _up_to(network, through)
    else:
        kept = keep if keep is not None else (_classifier(network),)
        below = {name for name in network.state_dict() if any(_below(name, p) for p in kept)}
        frozen = set(network.state_dict()) - below
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name not in frozen)
    norms = []
    for name, module in network.named_modules():
        tensors = {f"{name}.{own}" if name else own for own in module.state_dict()}
        if isinstance(module, _NormBase) and tensors & frozen:
            # An attribute of the instance hides the method: parents call it on their children.
            object.__setattr__(module, "train", partial(_stay_in_eval, module))
            module.train()
            norms.append(name)
    # By name as well: SyncBatchNorm puts new modules in the place of the frozen ones.
    object.__setattr__(network, "train", partial(_train_but, network, norms))
    return model


def unfreeze(model: ModuleT) -> ModuleT:
    """Undoes ``freeze``, in place: everything trains again, in the mode of the whole model."""
    network = getattr(model, "network", model)
    network.requires_grad_(True)
    for module in network.modules():
        module.__dict__.pop("train", None)
    network.train(network.training)
    return model


def _up_to(network: nn.Module, stage: str) -> set[str]:
    """The parameters and buffers from the input up to a stage, by name."""
    tensors = network.state_dict()
    if matcher := getattr(network, "group_matcher", None):
        # timm sorts parameters alone; of a norm without any, the buffers have to be sorted as well.
        named: Any = SimpleNamespace(named_parameters=tensors.items)
        layers = group_parameters(named, matcher(), reverse=True)
    else:  # in the order in which they were made
        layers = {name: layer for layer, name in enumerate(tensors)}
    last = max((layers[name] for name in tensors if _below(name, stage)), default=-1)
    if last < 0:
        raise ValueError(f"{stage} has no parameters: name a stage that has")
    return {name for name in tensors if layers[name] <= last}


def _stay_in_eval(module: nn.Module, mode: bool = True) -> nn.Module:
    return nn.Module.train(module, False)


def _train_but(network: nn.Module, frozen: list[str], mode: bool = True) -> nn.Module:
    type(network).train(network, mode)
    for name in frozen:
        type(network).train(network.get_submodule(name), False)
    return network


def _below(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def _classifier(network: nn.Module) -> str:
    if (name := classifier_name(network)) is not None:
        return name
    raise ValueError(
        f"cannot find the classifier of {type(network).__name__}: name what stays trainable, "
        "freeze(model, keep=('my_head',))"
    )
