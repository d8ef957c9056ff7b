"""Inputs and outputs of an exported network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zoo.data.images import Split
from zoo.data.resize import Crop
from zoo.errors import UserError


@dataclass(frozen=True)
class Served:
    """A module as a file of its own holds it, and what is needed to describe and check it."""

    module: nn.Module  # in evaluation mode, on the CPU; takes ``inputs`` in their order
    inputs: dict[str, Tensor]  # an example by name, two samples each
    free: dict[str, dict[int, str]]  # by input: the dimensions that may have any size, named
    output: str  # the output's name
    axis: int  # of the output, along which the largest is the answer
    facts: dict[str, Any]  # what a user of the file must know; JSON values
    real: Callable[[int], tuple[Tensor, ...]]  # this many samples of real inputs
    whole: Callable[[], Iterator[tuple[Tensor, ...]]] | None  # the test set in batches, if it
    # is the largest output that decides
    data: str  # what ``real`` and ``whole`` come from
    calibration: Callable[[int], tuple[Tensor, ...]]  # this many samples for quantization


class Classifier(nn.Module):
    """A classifier from images to logits, by option from pixels and to probabilities.

    Args:
        network: normalized images (B, C, H, W) to logits (B, K).
        preprocessing: uint8 images of any size to what the network takes; None where it gets that.
        temperature: logits are divided by it before the softmax; None leaves logits.
    """

    def __init__(
        self,
        network: nn.Module,
        preprocessing: nn.Module | None = None,
        temperature: float | None = None,
    ) -> None:
        super().__init__()
        self.network, self.preprocessing = network, preprocessing
        self.temperature = temperature

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) → (B, K)."""
        if self.preprocessing is not None:
            images = self.preprocessing(images)
        logits: Tensor = self.network(images)
        return logits if self.temperature is None else (logits / self.temperature).softmax(1)


class Preprocessing(nn.Module):
    """Resizes, crops and normalizes as ``zoo.data.transform.Transform`` does.

    Args:
        info: a classifier's ``data_info``.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, info: dict[str, Any]) -> None:
        super().__init__()
        _, *size = info["input_shape"]
        self.crop = Crop(size, info.get("crop_pct", 1.0), info.get("interpolation", "bilinear"))
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(info[name]).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """uint8 (B, C, H, W) → float32 (B, C, h, w)."""
        return (self.crop(images).float() / 255 - self.mean) / self.std


def serve_classifier(task: Any, data: Any, preprocessing: bool, probabilities: bool) -> Served:
    """Prepares the classifier of an ``ImageClassifier`` for export."""
    info = task.data_info
    temperature = float(getattr(task, "temperature", 1.0))
    module = Classifier(
        task.network,
        Preprocessing(info) if preprocessing else None,
        temperature if probabilities else None,
    )
    known = ("classes", "mean", "std", "input_shape", "crop_pct", "interpolation")
    # A folder's test images may all have been left to training.
    held_out: Split = "test" if data.sizes().get("test") else "validation"

    def batches(split: Split) -> Iterator[tuple[Tensor, ...]]:
        for images, _ in data.plain(split):
            yield (images if preprocessing else data.normalize(images),)

    return Served(
        module=module,
        inputs={"images": first(batches(held_out), 2)[0]},
        free={"images": {0: "batch", **({2: "height", 3: "width"} if preprocessing else {})}},
        output="probabilities" if probabilities else "logits",
        axis=1,
        facts={
            **{key: info[key] for key in known if key in info},
            "temperature": temperature,
            "preprocessing": preprocessing,
            "probabilities": probabilities,
        },
        real=lambda count: first(batches(held_out), count),
        whole=lambda: batches(held_out),
        data=f"{data.used.name} {held_out} images",
        calibration=lambda count: first(batches("validation"), count),
    )


def serve_generator(task: Any, data: Any, preprocessing: bool, probabilities: bool) -> Served:
    """Prepares the generator of a ``GAN`` for export: latents and classes to images in [-1, 1]."""
    _refuse(task, preprocessing, probabilities)
    info, classes = task.data_info, task.network.num_classes

    def draw(count: int) -> tuple[Tensor, ...]:
        latents = task.draw(count, torch.Generator().manual_seed(0))
        return (latents, torch.arange(count) % classes) if classes else (latents,)

    names = ("latents", "labels") if classes else ("latents",)
    return Served(
        module=task.network.generator,
        inputs=dict(zip(names, draw(2), strict=True)),
        free={name: {0: "batch"} for name in names},
        output="images",
        axis=1,
        facts={
            "classes": info.get("classes", []),
            "latent_size": task.network.latent_size,
            "temperature": task.temperature,  # of the latents, one number or one for each class
        },
        real=draw,
        whole=None,
        data="latents of seed 0",
        calibration=draw,
    )


def serve_language_model(task: Any, data: Any, preprocessing: bool, probabilities: bool) -> Served:
    """Prepares a ``LanguageModel``'s network for export: tokens to logits, of any length."""
    _refuse(task, preprocessing, probabilities)
    length = int(getattr(task.network, "context_length", 0)) or None
    data.setup("validate")
    loaders = data.val_dataloader()
    loader = loaders[0] if isinstance(loaders, list) else loaders

    def batches() -> Iterator[tuple[Tensor, ...]]:
        for batch in loader:
            tokens, _ = data.on_after_batch_transfer(batch, 0)  # loaders give where windows start
            yield (tokens,)

    def real(count: int) -> tuple[Tensor, ...]:
        return first(batches(), count)

    return Served(
        module=task.network,
        inputs={"tokens": real(2)[0]},
        free={"tokens": {0: "batch", 1: "length"}},
        output="logits",
        axis=2,
        facts={"vocabulary": task.data_info.get("vocabulary", ""), "context_length": length},
        real=real,
        whole=batches,
        data=f"{data.used.name} held-out text",
        calibration=real,
    )


def first(batches: Iterator[tuple[Tensor, ...]], count: int) -> tuple[Tensor, ...]:
    """Takes the first ``count`` samples of batches, repeated where there are fewer."""
    parts: list[tuple[Tensor, ...]] = []
    found = 0
    for batch in batches:
        parts.append(batch)
        found += len(batch[0])
        if found >= count:
            break
    if not found:
        raise UserError("there is no data to export with: the test set is empty")
    joined = tuple(torch.cat(column) for column in zip(*parts, strict=True))
    if found < count:
        joined = tuple(each.repeat(-(-count // found), *[1] * (each.ndim - 1)) for each in joined)
    return tuple(each[:count] for each in joined)


def _refuse(task: Any, preprocessing: bool, probabilities: bool) -> None:
    if preprocessing or probabilities:
        raise UserError(
            f"--with preprocessing and probabilities are for classifiers, and this is a "
            f"{type(task).__name__}: leave --with away"
        )
