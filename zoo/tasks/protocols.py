"""What a task may do in addition to learning, for ``python -m zoo sample`` and the run's folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class SamplesImages(Protocol):
    """Generates images, of a class each."""

    data_info: dict[str, Any]

    def sample(
        self,
        labels: Sequence[int | str] | Tensor | int,
        seed: int | None = None,
        latents: Tensor | None = None,
        temperature: float | list[float] | None = None,
    ) -> Tensor:
        """Generates images (B, C, H, W) in [0, 1]."""

    def interpolate(
        self,
        first: int | str,
        second: int | str,
        steps: int = 8,
        seed: int | None = None,
        temperature: float | list[float] | None = None,
    ) -> Tensor:
        """Generates images (steps, C, H, W) between two classes."""


@runtime_checkable
class StreamsText(Protocol):
    """Continues a text."""

    def stream(self, prompt: str, max_new_tokens: int = 200, **sampling: Any) -> Iterator[str]:
        """Generates pieces of text, one after another."""


@runtime_checkable
class KeepsSamples(Protocol):
    """Keeps a sample of what it generates in the run's folder, after every validation."""

    def keep_sample(self, folder: Path, epoch: int) -> None:
        """Writes into ``folder``; ``epoch`` counts from 1."""


@runtime_checkable
class ScoresImages(Protocol):
    """Scores labeled images one by one, as validation does."""

    def scores(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Computes values (B,) by name: ``loss``, ``accuracy``."""
