"""A small instance of every task: what all of them must do is tested on each of these."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

import zoo
from zoo import networks, registry
from zoo.data import DigitMasks, Digits, TextFile
from zoo.tasks import Task

EVERY_TASK = {
    "optimizer",
    "lr",
    "optimizer_args",
    "schedule",
    "ema_decay",
    "record",
    "network",
}
GAN_ALONE = {"temperature", "one_stage", "mismatch", "shift"}
OTHERS_ALONE = {"momentum", "warmup", "weight_decay", "compile"}


class TokenBatchNorm(nn.Module):
    """BatchNorm of tokens (B, T, D): no language network of the zoo has one, a user's may."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.transpose(1, 2)).transpose(1, 2)


def with_batch_norm(network: nn.Module) -> None:
    network.norm = TokenBatchNorm(network.embed.embedding_dim)


@dataclass(frozen=True)
class Case:
    name: str  # in zoo.registry.TASKS
    network: dict[str, Any]  # as networks.build takes it
    options: dict[str, Any]
    hparams: set[str]  # as a .ckpt keeps them
    make_data: Callable[[Path], Any]
    inputs: Callable[[Any], tuple[Tensor, ...]]  # of the averaged part: the whole training set
    sample: Callable[[Task], Any]  # with dropout on, or by what the task generates
    keep: tuple[str, ...] | None = None  # what zoo.freeze leaves trainable
    alter: Callable[[nn.Module], None] | None = None  # makes the network one that is not the zoo's

    def task(self, **changes: Any) -> Task:
        torch.manual_seed(0)
        network = networks.build(self.network)
        if self.alter is not None:
            self.alter(network)
        cls = registry.load(registry.TASKS[self.name].task)
        return cls(network, **{**self.options, **changes})

    def data(self, folder: Path) -> Any:
        """A data module that has read its data."""
        data = self.make_data(folder)
        data.prepare_data()
        data.setup("fit")
        return data

    def __str__(self) -> str:
        return self.name if self.alter is None else f"{self.name}-{self.alter.__name__}"


def trainer(folder: Path, **settings: Any) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    quiet |= {"enable_checkpointing": False, "accelerator": "cpu", "devices": 1}
    return Trainer(default_root_dir=folder, **{**quiet, "max_epochs": 3, **settings})


def digits(batch_size: int) -> Callable[[Path], Digits]:
    # Not augmented: the images that training sees are known.
    return lambda folder: Digits(batch_size, shift=0)


def text(folder: Path) -> TextFile:
    words = "the quick brown fox jumps over the lazy dog".split()
    drawn = words + random.Random(0).choices(words, k=700)
    path = folder / "text.txt"
    path.write_text(" ".join(drawn), encoding="utf-8")
    return TextFile(str(path), context_length=16, batch_size=16)


def images_of(data: Digits) -> tuple[Tensor, ...]:
    images, _ = data._train
    return (data.normalize(images),)


def latents_of(data: Digits) -> tuple[Tensor, ...]:
    _, labels = data._train
    return torch.randn(len(labels), 16, generator=torch.Generator().manual_seed(1)), labels


def tokens_of(data: TextFile) -> tuple[Tensor, ...]:
    starts = torch.arange(len(data._tokens["train"]) - data.context_length)
    return (data.windows(starts, "train")[0],)


def mc_dropout(task: Task) -> Tensor:
    images = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return zoo.mc_dropout(task.network, images, samples=3, return_samples=True).samples


def segmented(task: Task) -> Tensor:
    images = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    options = {"samples": 3, "return_samples": True, "task": "segmentation"}
    return zoo.mc_dropout(task.network, images, **options).samples


def generated_images(task: Any) -> Tensor:
    return task.sample(torch.arange(10), seed=0)


def generated_text(task: Any) -> str:
    return task.generate("the ", 20, seed=0)


LANGUAGE = {
    "name": "LanguageModel",
    "network": {
        "name": "Transformer",
        "args": {
            "vocab_size": 27,
            "context_length": 16,
            "embed_dim": 16,
            "depth": 1,
            "num_heads": 2,
            "norm": "layernorm",
            "bias": True,
            "tied": False,
            "resid_drop_rate": 0.2,
        },
    },
    "options": {"lr": 0.05, "schedule": "constant", "ema_decay": 0.97},
    "hparams": EVERY_TASK | OTHERS_ALONE | {"final_lr"},
    "make_data": text,
    "inputs": tokens_of,
    "sample": generated_text,
    "keep": ("head",),
}
CASES = [
    Case(
        name="ImageClassifier",
        network={
            "name": "ConvNet",
            "args": {
                "num_classes": 10,
                "in_channels": 1,
                "size": "medium",
                "drop_rate": 0.3,
                "spatial_drop_rate": 0.2,
            },
        },
        options={
            "optimizer": "adamw",
            "lr": 0.03,
            "weight_decay": 0.05,
            "schedule": "constant",
            "ema_decay": 0.97,
        },
        hparams=EVERY_TASK | OTHERS_ALONE | {"label_smoothing", "class_weights", "channels_last"},
        make_data=digits(32),
        inputs=images_of,
        sample=mc_dropout,
    ),
    Case(
        name="GAN",
        network={
            "name": "SNGAN",
            "args": {
                "num_classes": 10,
                "in_channels": 1,
                "image_size": 8,
                "latent_size": 16,
                "generator_width": 8,
                "discriminator_width": 8,
                "blocks": 1,
            },
        },
        options={
            "lr": [0.1, 0.002],
            "schedule": "constant",
            "mismatch": 0.5,
            "shift": 1,
            "ema_decay": 0.97,
        },
        hparams=EVERY_TASK | GAN_ALONE | {"channels_last"},
        make_data=digits(64),
        inputs=latents_of,
        sample=generated_images,
        keep=("generator.last", "discriminator"),
    ),
    Case(
        name="Segmenter",
        network={
            "name": "UNet",
            "args": {
                "num_classes": 11,
                "in_channels": 1,
                "width": 8,
                "depth": 1,
                "norm": "batch",
                "drop_rate": 0.2,
            },
        },
        options={"lr": 0.03, "weight_decay": 0.05, "schedule": "constant", "ema_decay": 0.97},
        hparams=EVERY_TASK | (OTHERS_ALONE - {"compile"}) | {"dice_weight"},
        # Not augmented: the images that training sees are known.
        make_data=lambda folder: DigitMasks(64, shift=0, image_size=8),
        inputs=images_of,
        sample=segmented,
    ),
    Case(**LANGUAGE),
    Case(**LANGUAGE, alter=with_batch_norm),
]
# Those whose networks have BatchNorm, and those whose networks a checkpoint can name.
NORMALIZED = [case for case in CASES if case.name != "LanguageModel" or case.alter]
REGISTERED = [case for case in CASES if case.alter is None]
