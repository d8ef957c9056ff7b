"""A small GAN and a short fit of it."""

from __future__ import annotations

import torch
from lightning.pytorch import Trainer

from zoo import networks
from zoo.data import Digits
from zoo.tasks import GAN

SHORT = (
    *("fit", "--recipe", "gan_digits", "--trainer.max_epochs", "2"),
    *("--model.network.generator_width", "8", "--model.network.discriminator_width", "8"),
)


def small(**options) -> GAN:
    torch.manual_seed(0)
    network = networks.SNGAN(10, 1, 8, 16, 8, 8, 1)
    return GAN(network, **{"lr": 1e-3, "schedule": "constant", **options})


def fit(task: GAN, steps: int = 6, **options) -> Trainer:
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(task, datamodule=Digits(batch_size=64, shift=0))
    return trainer
