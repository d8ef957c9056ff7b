"""What a GAN does once it is trained: latents, samples, and the way between two samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.core import pictures
from zoo.core.modes import evaluating
from zoo.core.text import counted
from zoo.errors import UserError
from zoo.tasks.base import Task, ramp


class LatentSampler(Task):
    """A task whose network has a ``generator`` of images from normal latents.

    Samples are generated in evaluation mode, by BatchNorm's running statistics, whatever mode the
    task is in; no buffer changes.
    """

    network: Any  # with generator, latent_size and num_classes
    _temperature: float | list[float]
    _noise: torch.Generator | None = None  # of a training step

    @property
    def temperature(self) -> float | list[float]:
        """Of samples where none is given; may be set, and is saved with the weights."""
        return self._temperature

    @temperature.setter
    def temperature(self, value: float | list[float]) -> None:
        check_temperature("temperature", value, self.network.num_classes)
        self._temperature = self.hparams["temperature"] = value

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:  # type: ignore[override]
        """(B, Z) and labels (B,) → images (B, C, H, W) in (-1, 1)."""
        images: Tensor = self.network.generator(latents, labels)
        return images

    def draw(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Draws normal latents (count, Z); in training those of this step and process."""
        size = self.network.latent_size
        # On the CPU, so that a seed means the same on every device.
        latents = torch.randn(count, size, generator=generator or self._noise)
        return latents.to(self.device, non_blocking=True)

    def sample(
        self,
        labels: Sequence[int | str] | Tensor,
        seed: int | None = None,
        latents: Tensor | None = None,
        temperature: float | list[float] | None = None,
    ) -> Tensor:
        """Generates images.

        Args:
            labels: a class for each image, by number or by name.
            seed: the same seed generates the same images.
            latents: (B, Z), in place of drawn ones.
            temperature: standard deviation of drawn latents, or one for each of the task's
                classes; the task's own where none is given.

        Returns:
            Images (B, C, H, W) in [0, 1].

        Raises:
            UserError: no such class, a negative temperature, or a list of another length.
        """
        if isinstance(labels, int):
            raise UserError(f"give a class for each image: [{labels}] for one of class {labels}")
        numbers = [self._class_number(label) for label in labels]
        given = torch.tensor(numbers, device=self.device)
        if latents is None:
            deviations = self._deviations(temperature, given)
            latents = self._seeded_latents(len(numbers), seed) * deviations
        return self._images(latents, given)

    def interpolate(
        self,
        first: int | str,
        second: int | str,
        steps: int = 8,
        seed: int | None = None,
        temperature: float | list[float] | None = None,
    ) -> Tensor:
        """Generates images (steps, C, H, W) between two samples, of one class or two.

        Latents turn at an even pace (``slerp``); between two classes their scales and shifts are
        mixed, and their temperatures. Classes, ``seed`` and ``temperature`` as in ``sample``.

        Raises:
            UserError: as ``sample``.
        """
        share = torch.linspace(0, 1, steps, device=self.device)[:, None]
        start, end = self._seeded_latents(2, seed)
        latents = slerp(start, end, share)
        ends = torch.tensor(
            [self._class_number(first), self._class_number(second)], device=self.device
        )
        both = F.one_hot(ends, self.network.num_classes).float()
        deviations = self._deviations(temperature, ends)
        latents = latents * ((1 - share) * deviations[0] + share * deviations[-1])
        return self._images(latents, (1 - share) * both[0] + share * both[1])

    def keep_sample(self, folder: Path, epoch: int) -> None:
        """Saves a grid of an epoch's samples, always of the same latents, and an animation."""
        labels = torch.arange(self.network.num_classes).repeat_interleave(10)
        pictures.save_grid(self.sample(labels, seed=0), 10, folder / f"samples/{epoch:04d}.png")
        frames = sorted((folder / "samples").glob("[0-9]*.png"))
        pictures.animate(frames, folder / "samples.gif")

    def golden(self) -> Tensor:
        latents = ramp([2, self.network.latent_size])
        return self(latents, torch.tensor([0, 1]))

    @torch.no_grad()
    def _images(self, latents: Tensor, labels: Tensor) -> Tensor:
        with evaluating(self.network):
            return self(latents, labels).float().add(1).div(2).clamp(0, 1)

    def _seeded_latents(self, count: int, seed: int | None) -> Tensor:
        generator = torch.Generator()
        if seed is None:
            generator.seed()
        else:
            generator.manual_seed(seed)
        return self.draw(count, generator)

    def _deviations(self, given: float | list[float] | None, labels: Tensor) -> Tensor:
        """Of the latents of each label: (B, 1), or (1, 1) where all have the same."""
        if given is None:
            given = self.temperature
        check_temperature("temperature", given, self.network.num_classes)
        deviations = torch.tensor(given, dtype=torch.float32, device=self.device).view(-1, 1)
        return deviations if len(deviations) == 1 else deviations[labels]

    def _class_number(self, label: int | str | Tensor) -> int:
        names = [str(name) for name in self.data_info.get("classes", [])]
        if isinstance(label, str):
            if label not in names:
                raise UserError(f"no class named {label!r}: choose one of {', '.join(names)}")
            return names.index(label)
        if not 0 <= int(label) < self.network.num_classes:
            raise UserError(f"no class {int(label)}: there are {self.network.num_classes}")
        return int(label)


def slerp(start: Tensor, end: Tensor, share: Tensor) -> Tensor:
    """Turns one vector into another at an even pace, which keeps the length of normal latents.

    Args:
        start, end: (Z,).
        share: (S, 1), how far on the way, from 0 to 1.

    Returns:
        (S, Z).

    Source: Shoemake, "Animating rotation with quaternion curves", SIGGRAPH 1985.
    """
    cosine = torch.dot(start, end) / (start.norm() * end.norm())
    angle = torch.acos(cosine.clamp(-1, 1))
    turned = torch.sin((1 - share) * angle) * start + torch.sin(share * angle) * end
    return turned / torch.sin(angle)


def check_temperature(name: str, value: float | list[float], classes: int) -> None:
    """Raises UserError for a negative temperature, or a list that is not one for each class."""
    for number in value if isinstance(value, list) else [value]:
        if not number >= 0:
            raise UserError(f"{name} is {number}: it cannot be negative")
    if isinstance(value, list) and len(value) != classes:
        raise UserError(
            f"{name} has {counted(len(value), 'number')} for "
            f"{counted(classes, 'class', 'classes')}: give one for all, or one each"
        )
