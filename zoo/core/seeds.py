"""Random numbers that belong to a step of a run, so that resuming needs no state."""

from __future__ import annotations

from typing import Any

import torch


def step_seed(trainer: Any, stream: int = 0) -> int:
    """Computes a seed of its own for every batch and process of a fit.

    All processes share the seed of torch's global generator, and would draw the same.

    Args:
        trainer: Lightning's.
        stream: another number for another use within the same batch.
    """
    step = trainer.fit_loop.total_batch_idx
    seed = (torch.initial_seed() % 2**31) * 1_000_003 + step * 4099 + trainer.global_rank
    return int(seed + stream * 2**53) % 2**63
