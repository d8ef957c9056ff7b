"""Low-rank adaptation of linear layers, by ``peft``, and its weights as plain ones.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022. The scale α / r is 1:
an adapted layer computes (W + B A) x, and what is published is W + B A.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from zoo.errors import UserError
from zoo.networks.base import classifier_name

BASE, DOWN, UP = "base_layer.", "lora_A.default.weight", "lora_B.default.weight"


def add_lora(network: nn.Module, rank: int) -> None:
    """Adds trainable matrices of a low rank to every linear layer, in place; the rest is frozen.

    The classifier goes on training as it is, unless it is tied to an embedding. Outputs stay the
    same at first, as B starts at zero.

    Args:
        network: with linear layers, such as a transformer.
        rank: of B A.

    Raises:
        ValueError: no linear layer except the classifier, or a rank below 1.
        UserError: ``peft`` is not installed.
    """
    if rank < 1:
        raise ValueError(f"lora_rank is {rank}: it must be at least 1")
    head = classifier_name(network)
    targets = [
        name
        for name, module in network.named_modules()
        if type(module) is nn.Linear and name and name != head
    ]
    if not targets:
        raise ValueError(
            f"lora_rank: LoRA adapts linear layers, and {type(network).__name__} has none except "
            "its classifier"
        )
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise UserError("lora_rank needs peft: pip install 'lightning-zoo[lora]'") from None
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=targets)
    inject_adapter_in_model(config, network)
    for name, parameter in network.named_parameters():
        if head is not None and name.startswith(f"{head}."):  # not one tied to an embedding
            parameter.requires_grad_(True)


def lora_rank(network: nn.Module) -> int | None:
    """Returns the rank that ``add_lora`` was given; None where there are no LoRA matrices."""
    named = network.named_parameters()
    return next((len(parameter) for name, parameter in named if name.endswith(DOWN)), None)


def merge_lora(network: nn.Module) -> None:
    """Makes adapted layers plain ones that compute the same, in place."""
    if lora_rank(network) is None:
        return
    from peft.tuners.lora import LoraLayer

    for name, module in list(network.named_modules()):
        if isinstance(module, LoraLayer):
            adapted: Any = module
            adapted.merge()
            network.set_submodule(name, adapted.get_base_layer())
    network.requires_grad_(True)


def merged_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Merges LoRA into the state dict of plain layers: W + B A under W's name."""
    merged = {}
    for name, tensor in state.items():
        if name.endswith((DOWN, UP)):
            continue
        layer, base, kind = name.rpartition(BASE)
        if kind == "weight" and (down := state.get(f"{layer}{DOWN}")) is not None:
            tensor = tensor + state[f"{layer}{UP}"] @ down
        merged[f"{layer}{kind}" if base else name] = tensor
    return merged
