"""A step of ``gan_fmnist``'s optimiser, our Muon, against timm's, in turns.

Both iterate in the same precision; ours steps what is no matrix by torch's fused AdamW. The ratio
is the time of timm's step over ours.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import timm.optim
import timm.optim.muon
import torch
from turns import compare, print_peaks

from zoo.cli import build
from zoo.tasks import GAN
from zoo.tasks.optim import Muon

ROUNDS = 30


def stepper(ours: bool) -> Callable[[], None]:
    task, _ = build("gan_fmnist", [])
    assert isinstance(task, GAN)
    optimizer = task._optimizer(task.network.generator, task.lr)
    assert isinstance(optimizer, Muon)
    for parameter in task.network.generator.parameters():
        parameter.grad = torch.randn_like(parameter)
    if ours:
        return optimizer.step
    dtype = optimizer.dtype
    optimizer.__class__ = timm.optim.Muon
    iterate = timm.optim.muon.zeropower_via_newtonschulz

    def run() -> None:
        timm.optim.muon.zeropower_via_newtonschulz = functools.partial(iterate, dtype=dtype)
        try:
            optimizer.step()
        finally:
            timm.optim.muon.zeropower_via_newtonschulz = iterate

    return run


def main() -> None:
    ways = {"timm's": stepper(False), "ours": stepper(True)}
    compare("a step of gan_fmnist's generator by Muon", ways, ROUNDS)
    print_peaks(ways)


if __name__ == "__main__":
    main()
