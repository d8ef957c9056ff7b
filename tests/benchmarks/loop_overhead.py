"""What Lightning's loop and our task add to a step, in milliseconds: a bare loop of the same
network, optimizer and batches, in turns with ``Trainer.fit``. The network is tiny, so that the
loop is what is timed."""

from __future__ import annotations

import logging
import statistics
import time
import warnings

import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.nn import functional as F

from zoo.data import Digits
from zoo.tasks import ImageClassifier
from zoo.tasks.optim import make_optimizer

EPOCHS, BATCH = 40, 32


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def bare() -> float:
    data = Digits(BATCH)
    data.setup("fit")
    batches = data.train_dataloader()
    model = network()
    optimizer = make_optimizer(model, "sgd", 0.01, 0.0, 0.9)
    start = time.perf_counter()
    for epoch in range(EPOCHS):
        batches.set_epoch(epoch)
        for images, labels in batches:
            images = data.normalize(data.augment(images, torch.Generator().manual_seed(epoch)))
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return (time.perf_counter() - start) / (EPOCHS * len(batches))


def fit(barebones: bool) -> float:
    data = Digits(BATCH)
    task = ImageClassifier(network(), lr=0.01, weight_decay=0.0, schedule="constant", warmup=0)
    quiet = {} if barebones else {"logger": False, "enable_checkpointing": False}
    quiet |= {} if barebones else {"enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        max_epochs=EPOCHS, limit_val_batches=0, barebones=barebones, accelerator="cpu", **quiet
    )
    start = time.perf_counter()
    trainer.fit(task, datamodule=data)
    return (time.perf_counter() - start) / trainer.global_step


def main() -> None:
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    runs = {
        "bare loop": bare,
        "Trainer, barebones": lambda: fit(True),
        "Trainer, our task": lambda: fit(False),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(4):
        for name, run in runs.items():
            times[name].append(run())
    floor = statistics.median(times["bare loop"])
    for name, measured in times.items():
        median = statistics.median(measured)
        print(
            f"{name:20} {1000 * median:6.2f} ms a step, overhead {1000 * (median - floor):5.2f} ms"
        )


if __name__ == "__main__":
    main()
