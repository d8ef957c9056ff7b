"""A step of our Muon against timm's, of the networks of two recipes, in turns.

Ours steps all matrices of a shape together, in float32, and what is no matrix by torch's fused
AdamW; timm's iterates in bfloat16, or in float32 where bfloat16 would be imitated. The ratio is the
time of timm's step over ours.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import timm.optim
import timm.optim.muon
import torch
from turns import compare, print_peaks

from zoo.cli.building import from_recipe
from zoo.core.devices import imitates_bfloat16
from zoo.tasks.muon import Muon

ROUNDS = 30


def stepper(name: str, ours: bool) -> Callable[[], None]:
    task, _ = from_recipe(name, [])
    optimizer = task.make_optimizer()  # of a GAN its generator's
    assert isinstance(optimizer, Muon)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.randn_like(parameter)
    if ours:
        return optimizer.step
    shared = ("momentum", "ns_steps", "adjust_lr_fn", "fallback_lr_scale", "betas", "eps")
    settings = {key: optimizer.defaults[key] for key in shared}
    theirs = timm.optim.Muon(optimizer.param_groups, lr=optimizer.defaults["lr"], **settings)
    iterate = timm.optim.muon.zeropower_via_newtonschulz
    dtype = torch.float32 if imitates_bfloat16("cpu") else torch.bfloat16

    def run() -> None:
        timm.optim.muon.zeropower_via_newtonschulz = functools.partial(iterate, dtype=dtype)
        try:
            theirs.step()
        finally:
            timm.optim.muon.zeropower_via_newtonschulz = iterate

    return run


def main() -> None:
    for name in ("gan_fmnist", "transformer_shakespeare"):
        ways = {"timm's": stepper(name, False), "ours": stepper(name, True)}
        compare(f"a step of {name} by Muon", ways, ROUNDS)
        print_peaks(ways)


if __name__ == "__main__":
    main()
