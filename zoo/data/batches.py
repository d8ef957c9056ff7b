"""Batches of tensors that live in memory: one indexing operation each, and resumable."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, Self

import torch
from torch import Tensor


class Batches:
    """An iterable of ``(inputs, targets)`` batches, in place of a DataLoader.

    The order of an epoch is a function of ``(seed, epoch)`` alone, and the position within it is
    state that a Lightning checkpoint keeps: a run resumed in mid-epoch continues with the batch
    that would have come next. With several processes, each takes its own slice of every global
    batch when shuffling (all do the same number of steps), or every ``world``-th sample when not
    (each sample is seen exactly once, so that reduced metrics are exact).

    Args:
        inputs: (N, …), any type.
        targets: (N,).
        batch_size: samples a batch and process.
        shuffle: a new order every epoch.
        drop_last: leaves out what does not fill a batch; with ``shuffle`` and several processes
            the last, incomplete global batch is always left out.
        seed: of the order.
        rank, world: this process and how many there are.
        weights: (N,), of each sample when shuffling: an epoch is as long as without, and holds a
            sample as often as its share of their sum says, to within one (systematic resampling:
            Carpenter et al., "Improved particle filter for nonlinear problems", 1999, section 3).
    """

    batch_sampler = None  # Lightning asks

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor,
        batch_size: int,
        *,
        shuffle: bool = False,
        drop_last: bool = False,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        weights: Tensor | None = None,
    ) -> None:
        self.inputs, self.targets = inputs, targets
        self.batch_size, self.shuffle, self.seed = batch_size, shuffle, seed
        self.rank, self.world, self.weights = rank, world, weights
        self.drop_last = drop_last or (shuffle and world > 1)
        self.epoch = 0
        self.position = 0  # batches of this epoch already handed out
        self._resume = False

    @property
    def sampler(self) -> Batches:
        """Where Lightning looks for ``set_epoch``."""
        return self

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        """Batches an epoch, in this process."""
        per_batch = self.batch_size * (self.world if self.shuffle else 1)
        samples = len(self.inputs)
        if not self.shuffle:
            samples = len(range(self.rank, samples, self.world))
        return samples // per_batch if self.drop_last else -(-samples // per_batch)

    def _generator(self, number: int) -> torch.Generator:
        # A large odd factor keeps the streams of (seed, number) and (seed + 1, number - 1) apart.
        return torch.Generator().manual_seed(self.seed * 1_000_003 + number)

    def _order(self) -> Tensor:
        if not self.shuffle:
            return torch.arange(self.rank, len(self.inputs), self.world)
        generator = self._generator(self.epoch)
        order = torch.randperm(len(self.inputs), generator=generator)
        if self.weights is not None:
            order = order[resample(self.weights[order], generator)]
        if self.world == 1:
            return order
        whole = len(self) * self.batch_size * self.world
        return order[:whole].view(-1, self.world, self.batch_size)[:, self.rank].flatten()

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        start = self.position if self._resume else 0
        self._resume = False
        self.position = start
        order = self._order()
        for batch in range(start, len(self)):
            index = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            self.position = batch + 1
            # Whole rows are copied, which indexing with brackets does number by number.
            yield self.inputs.index_select(0, index), self.targets.index_select(0, index)

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "position": self.position, "seed": self.seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.position, self.seed = state["epoch"], state["position"], state["seed"]
        # A finished epoch resumes with the first batch of the next.
        self._resume = self.position < len(self)

    def fresh(self) -> Self:
        """Makes an independent pass over the same epoch."""
        twin = copy.copy(self)
        twin.position, twin._resume = 0, False
        return twin


def resample(weights: Tensor, generator: torch.Generator) -> Tensor:
    """As many numbers of samples, in random order, each as often as its weight says."""
    count = len(weights)
    double = torch.float64  # in single precision as many as there are would not add up
    ends = weights.to(double).cumsum(0)
    first = torch.rand(1, dtype=double, generator=generator)
    places = (torch.arange(count) + first) * (ends[-1] / count)
    chosen = torch.searchsorted(ends, places, right=True)
    return chosen[torch.randperm(count, generator=generator)]
