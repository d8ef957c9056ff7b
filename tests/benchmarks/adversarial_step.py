"""A training step of ``gan_fmnist``'s networks in one stage against one in turns, in turns.

Optimizers and everything else of the task included; in bfloat16 as the recipe trains, or in float32
where bfloat16 would be imitated. The ratio is the time of a step in turns over one in one stage.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from turns import compare, print_peaks

from zoo import recipes
from zoo.cli.building import from_recipe
from zoo.core.devices import imitates_bfloat16
from zoo.tasks import GAN

ROUNDS = 15
BATCH = recipes.resolve("gan_fmnist")["data"]["init_args"]["batch_size"]


def stepper(one_stage: bool, half: bool) -> Callable[[], None]:
    task, data = from_recipe("gan_fmnist", ["--model.one_stage", str(one_stage).lower()])
    assert isinstance(task, GAN)
    task.data_info = data.describe()
    networks = (task.network.generator, task.network.discriminator)
    rates = (task.lr, task.discriminator_lr)
    optimizers = [task._optimizer(*pair) for pair in zip(networks, rates, strict=True)]
    images, labels = torch.randn(BATCH, 1, 28, 28), torch.arange(BATCH) % 10

    def apply(
        loss: torch.Tensor, network: torch.nn.Module, optimizer: torch.optim.Optimizer
    ) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    task._step = apply  # type: ignore[method-assign]  # Lightning's needs a trainer

    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            parts = [task._part(images, labels) for _ in range(1 if one_stage else 2)]
            task._learn(parts, *optimizers)

    return run


def main() -> None:
    half = not imitates_bfloat16("cpu")
    ways = {"in turns": stepper(False, half), "in one stage": stepper(True, half)}
    compare(f"a step on {BATCH} images, {'bfloat16' if half else 'float32'}", ways, ROUNDS)
    print_peaks(ways)


if __name__ == "__main__":
    main()
