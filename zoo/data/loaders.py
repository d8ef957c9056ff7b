"""In which order a DataLoader takes images that do not fit into memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DistributedSampler, Sampler

from zoo.data.batches import resample


class Share(DistributedSampler[Any]):
    """Every ``world``-th sample, each exactly once over all processes.

    Lightning's own repeats some until all processes have equally many, and so counts them twice.
    """

    def __init__(self, samples: int, rank: int, world: int) -> None:
        self.indices = range(rank, samples, world)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)

    def set_epoch(self, epoch: int) -> None:
        """The order is always the same."""


class Resampled(Sampler[int]):
    """Samples in random order, each as often as its weight says."""

    def __init__(self, weights: Tensor) -> None:
        self.weights = weights

    def __len__(self) -> int:
        return len(self.weights)

    def __iter__(self) -> Iterator[int]:
        # As torch's RandomSampler has it: from the global state, which a run's seed has set.
        seed = int(torch.empty((), dtype=torch.int64).random_())
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(self.weights), generator=generator)
        return iter(order[resample(self.weights[order], generator)].tolist())
