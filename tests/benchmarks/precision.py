"""What bfloat16 does to the recipes' training steps on this machine's processor.

Forward and backward of each recipe's network under autocast, as ``bf16-mixed`` trains, against the
same in float32; a ratio below 1 is a processor that only imitates bfloat16, for which the command
line takes float32 instead (``zoo.core.devices.lacks_bf16``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from turns import compare

from zoo import recipes
from zoo.cli.building import from_recipe
from zoo.core.devices import imitates_bfloat16

ROUNDS = 3
BATCH = 32


def step(task: Any, inputs: tuple[torch.Tensor, ...], fast: bool) -> Callable[[], None]:
    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=fast):
            output = task(*inputs)
        output.float().square().mean().backward()

    return run


def main() -> None:
    print(f"float32 in place of bf16-mixed here: {imitates_bfloat16('cpu')}")
    for name in recipes.names():
        trainer = recipes.resolve(name)["trainer"]
        if trainer.get("precision") != "bf16-mixed" or name.endswith("imagefolder"):
            continue  # 224 × 224: minutes where bfloat16 is imitated, and nothing new
        task, data = from_recipe(name, ["--data.batch_size", str(BATCH)])
        inputs = tuple(
            part.repeat(BATCH // len(part), *[1] * (part.ndim - 1))
            for part in task.train().example_inputs(data)
        )
        ways = {"float32": step(task, inputs, False), "bfloat16": step(task, inputs, True)}
        compare(f"{name}, a batch of {BATCH}", ways, ROUNDS)


if __name__ == "__main__":
    main()
