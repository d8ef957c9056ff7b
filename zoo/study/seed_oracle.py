"""Ground truth for dropout before BatchNorm, without a rule: does the seed change its input?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

SEEDS = 100  # rare drops need many


class Replayed(TorchFunctionMode):
    """Gives what normalizations gave the first time, so that nothing passes through them."""

    NORMS = (F.layer_norm, F.group_norm, F.rms_norm, F.normalize)

    def __init__(self) -> None:
        super().__init__()
        self.first: list[Tensor] = []
        self.at, self.done = 0, False

    def begin(self) -> None:
        self.at, self.done = 0, bool(self.first)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        live = func is F.batch_norm and args[1] is not None and kwargs.get("training", args[-1])
        if not live and func not in self.NORMS:
            return func(*args, **kwargs)
        if not self.done:
            self.first.append(func(*args, **kwargs).clone())
        self.at += 1
        return self.first[self.at - 1].clone()


def inputs_of_norms(model: nn.Module, run: Any, seed: int) -> dict[str, list[Tensor]]:
    """What each BatchNorm module is given in one forward."""
    names = {module: name for name, module in model.named_modules()}
    seen: dict[str, list[Tensor]] = {}

    def keep(module: nn.Module, inputs: Any) -> None:
        seen.setdefault(names[module], []).append(inputs[0].clone())

    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training]
    hooks = [norm.register_forward_pre_hook(keep) for norm in norms]
    torch.manual_seed(seed)
    with torch.no_grad():
        run()
    for hook in hooks:
        hook.remove()
    return seen


def changed_by_the_seed(
    model: nn.Module, x: Tensor, expected: set[str], replay: bool = False
) -> tuple[set[str], set[str]]:
    """The BatchNorms whose input differs from seed to seed, and all that run.

    More seeds are tried as long as something is missing from ``expected``.

    Args:
        model: set into training mode; scales that begin at zero would hide their branch and are
            drawn anew.
        x: its input.
        expected: what is thought to change.
        replay: other normalizations give the same output each time, so that what is left is what
            reaches a BatchNorm with no other normalization in between.
    """
    model.train()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim < 2:
                parameter.uniform_(0.5, 1.5)
    replayed = Replayed()

    def run() -> None:
        if not replay:
            model(x)
            return
        replayed.begin()
        with replayed:
            model(x)

    first: dict[str, list[Tensor]] = {}
    changed: set[str] = set()
    for seed in range(SEEDS):
        if seed >= 3 and changed == expected:
            break
        for name, tensors in inputs_of_norms(model, run, seed).items():
            before = first.setdefault(name, tensors)
            if any(not torch.equal(a, b) for a, b in zip(tensors, before, strict=True)):
                changed.add(name)
    return changed, set(first)
