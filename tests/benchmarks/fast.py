"""What each operation of ``zoo.networks.fast`` earns in a shipped recipe's training step.

Every recipe with shipped weights is fitted by its own task and data for some steps of 64 samples.
In turns a step has all operations, one of them replaced by torch's own, or all of them replaced;
the ratio is the median step with the replacement over the median step without. In the precision
that the recipe has on this machine: in float32 where bfloat16 is only imitated.

    python tests/benchmarks/fast.py [RECIPE …]
"""

from __future__ import annotations

import logging
import random
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest import mock

from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn
from torch.nn import functional as F

from zoo import recipes
from zoo.cli.building import from_recipe
from zoo.core.devices import imitates_bfloat16
from zoo.networks import fast, transformer, vit

ROUNDS, BATCH = 16, 64
RECIPES = (
    "vit_fmnist",
    "transformer_shakespeare",
    "gan_fmnist",
    "convnet_fmnist",
    "resnet_fmnist",
)


def attend(q: Tensor, k: Tensor, v: Tensor, rate: float, causal: bool = False, mask: Any = None):
    return F.scaled_dot_product_attention(
        q, k, v, mask, rate, causal, enable_gqa=q.shape[1] != k.shape[1]
    )


def pooled(layer: nn.Conv2d, x: Tensor) -> Tensor:
    return F.avg_pool2d(F.conv2d(x, layer.weight, layer.bias, padding=1), 2)


# Each operation: where networks find it, and torch's own.
OPERATIONS: dict[str, list[tuple[Any, str, Callable[..., Tensor]]]] = {
    "PooledConv2d": [(fast.PooledConv2d, "forward", pooled)],
    "dropout": [(fast.FastDropout, "forward", nn.Dropout.forward), (fast, "dropout", F.dropout)],
    "RMSNorm": [(fast.RMSNorm, "forward", nn.RMSNorm.forward)],
    "attend": [(vit, "attend", attend), (transformer, "attend", attend)],
}


class InTurns(Callback):
    """Times the steps of a fit, each with another of some operations replaced."""

    def __init__(self, turns: list[list[str]]) -> None:
        self.turns = turns
        self.order, self.places = random.Random(0), list(range(len(turns)))
        self.times: list[list[float]] = [[] for _ in turns]
        self.stack = ExitStack()

    def on_train_batch_start(self, trainer: Any, task: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx % len(self.turns) == 0:
            self.order.shuffle(self.places)  # what went before a step is not always the same
        self.at = self.places[batch_idx % len(self.turns)]
        for name in self.turns[self.at]:
            for place, attribute, replacement in OPERATIONS[name]:
                self.stack.enter_context(mock.patch.object(place, attribute, replacement))
        self.start = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Any, task: Any, out: Any, batch: Any, number: int
    ) -> None:
        spent = time.perf_counter() - self.start
        self.stack.close()
        if number >= len(self.turns):  # the first round warms up
            self.times[self.at].append(spent)


def uses(task: Any) -> list[str]:
    """The operations that a recipe's network is built of, or may call."""
    modules = list(task.network.modules())
    files = {type(module).__module__ for module in modules}
    found = []
    for name, places in OPERATIONS.items():
        for place, *_ in places:
            if isinstance(place, type):
                used = any(isinstance(module, place) for module in modules)
            else:
                used = place is not fast and place.__name__ in files
            if used and name not in found:
                found.append(name)
    return found


def measure(recipe: str) -> None:
    task, data = from_recipe(recipe, ["--data.batch_size", str(BATCH)])
    operations = uses(task)
    if not operations:
        print(f"{recipe}: uses none", flush=True)
        return
    turns = [[], *([name] for name in operations), operations]
    clock = InTurns(turns)
    precision = recipes.resolve(recipe)["trainer"].get("precision", "32-true")
    if precision == "bf16-mixed" and imitates_bfloat16("cpu"):
        precision = "32-true"
    trainer = Trainer(
        max_epochs=1,
        limit_train_batches=len(turns) * (ROUNDS + 1),
        limit_val_batches=0,
        precision=precision,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[clock],
    )
    trainer.fit(task, datamodule=data)
    ours, *others = map(statistics.median, clock.times)
    print(f"{recipe}, {precision}: a step {1000 * ours:.0f} ms; with torch's", flush=True)
    for name, median in zip([*operations, "all of them"], others, strict=True):
        print(f"  {name:16} ratio {median / ours:.2f}", flush=True)


def main() -> None:
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    for recipe in sys.argv[1:] or RECIPES:
        measure(recipe)


if __name__ == "__main__":
    main()
