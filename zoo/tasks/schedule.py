"""Learning-rate schedules, by name."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch.optim.lr_scheduler import LambdaLR

Schedule = Literal["linear", "cosine", "trapezoid", "constant"]


COOLDOWN = 0.3  # the part of a trapezoid in which the learning rate falls


def make_schedule(
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    warmup: float,
    total_steps: int,
    final: float = 0.0,
) -> LambdaLR:
    """Makes a schedule: linear warm-up, then a line, half a cosine, or a plateau and a line.

    Args:
        optimizer: its learning rates are the peaks.
        schedule: ``linear``, ``cosine`` (Loshchilov & Hutter 2017, section 3), ``trapezoid``
            (constant, and linear over the last three tenths: Hägele et al. 2024, section 3) or
            ``constant``.
        warmup: part of the steps, between 0 and 1, or their number from 1 up.
        total_steps: optimizer steps of the whole run.
        final: what the schedule ends at, as a share of the peak.
    """
    warmup_steps = round(warmup * total_steps) if warmup < 1 else round(warmup)
    warmup_steps = min(warmup_steps, total_steps)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        # The last step still moves: the end is reached one step after it.
        progress = min((step - warmup_steps) / max(1, total_steps - warmup_steps), 1.0)
        if schedule == "linear":
            return final + (1 - final) * (1 - progress)
        if schedule == "trapezoid":
            return final + (1 - final) * min((1 - progress) / COOLDOWN, 1.0)
        if schedule == "cosine":
            return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))
        return 1.0

    return LambdaLR(optimizer, factor)
