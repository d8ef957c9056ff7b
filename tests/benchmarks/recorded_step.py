"""What a step of ``fit`` costs over its own forward and backward, for one recipe of each network.

On a CUDA device the floor is forward and backward as one graph, in the recipe's precision;
elsewhere it is forward and backward in a bare loop, on a smaller batch. All that a step has besides
is in the ratio: loading and augmenting, the optimizer, averaging, metrics, Lightning's loop.
Two networks of the usual size follow, each against its peer, and MC dropout against one forward.
"""

from __future__ import annotations

import logging
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import timm
import torch
import torchvision
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn
from torch.nn import functional as F

import zoo
from zoo import networks, recipes
from zoo.cli.building import from_recipe
from zoo.core.devices import imitates_bfloat16
from zoo.tasks import GAN, Task

RECIPES = {
    "resnet": "resnet_fmnist",
    "vit": "vit_fmnist",
    "efficientnet": "efficientnet_fmnist",
    "convnet": "convnet_fmnist",
    "transformer": "transformer_shakespeare",
    "gan": "gan_fmnist",
}
CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
HALF = not imitates_bfloat16(DEVICE.type)
WARMUP, STEPS = (30, 200) if CUDA else (3, 12)
BATCH = None if CUDA else 32  # the recipe's on a GPU
ROUNDS = 20 if CUDA else 5


def wait() -> None:
    if CUDA:
        torch.cuda.synchronize()


def median(call: Callable[[], Any], rounds: int = ROUNDS) -> float:
    """Seconds of a call; the first two warm up."""
    times = []
    for _ in range(rounds + 2):
        wait()
        start = time.perf_counter()
        call()
        wait()
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


class Clock(Callback):
    """Seconds of a training step, from one batch's end to the next one's."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step in (WARMUP, WARMUP + STEPS):
            wait()
            now = time.perf_counter()
            self.seconds = now if trainer.global_step == WARMUP else (now - self.seconds) / STEPS


def build(name: str) -> tuple[Any, Any, str]:
    """Task, data and precision of a recipe."""
    recipe = recipes.resolve(name)
    given = ["--data.fallback", "null"]
    if BATCH is not None:
        text = "context_length" in recipe["data"]["init_args"]
        given += ["--data.batch_size", str(BATCH // 4 if text else BATCH)]
    torch.manual_seed(0)
    task, data = from_recipe(name, given)
    precision = recipe["trainer"].get("precision", "32-true") if HALF else "32-true"
    return task, data, precision


def fit_step(name: str) -> float:
    """Seconds of a step of ``fit``, all in."""
    task, data, precision = build(name)
    clock = Clock()
    trainer = Trainer(
        max_steps=WARMUP + STEPS,
        accelerator=DEVICE.type,
        devices=1,
        precision=precision,
        gradient_clip_val=recipes.resolve(name)["trainer"].get("gradient_clip_val"),
        limit_val_batches=0,
        num_sanity_val_steps=0,
        callbacks=[clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(task, datamodule=data)
    return clock.seconds


def one_batch(task: Any, data: Any) -> Any:
    """A training batch as the task's step has it."""
    data.prepare_data()
    data.setup("fit")
    task.data_info = data.describe()
    first = next(iter(data.train_dataloader()))
    return data.on_after_batch_transfer([part.to(DEVICE) for part in first], 0)


def learner(task: Task, batch: Any) -> Callable[[], Tensor]:
    """Forward and backward of a training batch, without an optimizer."""
    if not isinstance(task, GAN):

        def learn() -> Tensor:
            loss = task.training_values(batch)["loss"]
            with torch.autocast(DEVICE.type, enabled=False):
                loss.backward()
            return loss

        return learn
    task._noise = torch.Generator().manual_seed(0)
    part = task._part(task._denormalized(batch[0]), batch[1])
    task._step = lambda loss, network, optimizer: loss.backward()  # type: ignore[method-assign]
    task.check_finite = lambda loss: loss  # type: ignore[method-assign]

    def both() -> Tensor:
        return task._learn([part], None, None)["loss_generator"]

    return both


def floor(name: str) -> float:
    """Seconds of forward and backward, on CUDA as one graph."""
    task, data, precision = build(name)
    task.to(DEVICE).train()
    learn = learner(task, one_batch(task, data))

    def step() -> None:
        for parameter in task.parameters():
            parameter.grad = None
        half = precision == "bf16-mixed"
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=half, cache_enabled=False):
            learn()

    return median(recorded(step))


def recorded(step: Callable[[], Any]) -> Callable[[], Any]:
    """The same as one CUDA graph, where there is CUDA."""
    if not CUDA:
        return step
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def peers(name: str, ours: nn.Module, theirs: nn.Module) -> None:
    """A training step's forward and backward of a network over its peer's, in turns."""
    count = 128 if CUDA else 4
    images, labels = torch.randn(count, 3, 224, 224, device=DEVICE), torch.arange(count) % 1000
    labels = labels.to(DEVICE)

    def stepper(network: nn.Module) -> Callable[[], None]:
        network.to(DEVICE, memory_format=torch.channels_last).train()
        given = images.contiguous(memory_format=torch.channels_last)

        def step() -> None:
            network.zero_grad()
            with torch.autocast(DEVICE.type, torch.bfloat16, enabled=HALF):
                loss = F.cross_entropy(network(given).float(), labels)
            loss.backward()

        return step

    steps = [stepper(network) for network in (ours, theirs)]
    times = [[median(step, 3) for step in steps] for _ in range(5 if CUDA else 1)]
    one, other = (statistics.median(column) for column in zip(*times, strict=True))
    print(f"{name:42} {1000 * one:9.2f} {1000 * other:9.2f} {one / other:8.2f}", flush=True)


def samples() -> None:
    """50 MC samples of a dropped head over one forward."""
    model = timm.create_model("resnet18", drop_rate=0.3, num_classes=10).to(DEVICE).eval()
    images = torch.randn(*((256, 3, 224, 224) if CUDA else (32, 3, 96, 96)), device=DEVICE)

    def forward() -> None:
        with torch.inference_mode():
            model(images)

    one, many = median(forward), median(lambda: zoo.mc_dropout(model, images, 50))
    print(
        f"{'50 MC samples / one forward':42} {1000 * many:9.2f} {1000 * one:9.2f} {many / one:8.2f}"
    )


def main() -> None:
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_float32_matmul_precision("high")
    device = torch.cuda.get_device_name() if CUDA else "no CUDA device: the CPU, smaller batches"
    print(f"{device}; torch {torch.__version__}, {torch.get_num_threads()} threads on the host")
    base = "forward + backward as one graph" if CUDA else "forward + backward"
    print(f"{'':42} {'ms':>9} {'ms':>9} {'ratio':>8}")
    for title, name in RECIPES.items():
        whole, least = fit_step(name), floor(name)
        row = f"{title}: step of fit / {base}"
        print(f"{row:42} {1000 * whole:9.2f} {1000 * least:9.2f} {whole / least:8.2f}", flush=True)
    peers(
        "vit_small_patch16_224 / timm's",
        networks.vit_small_patch16_224(),
        timm.create_model("vit_small_patch16_224"),
    )
    peers("resnet50 / torchvision's", networks.resnet50(), torchvision.models.resnet50())
    samples()


if __name__ == "__main__":
    main()
