"""What dropout before BatchNorm did to a trained network, and what re-estimated statistics give."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch import nn

from zoo.diagnostics.recalibrate import recalibrate
from zoo.diagnostics.variance_shift import variance_shift

SHIFT = "shift/dropout"  # variance of a BatchNorm's input, dropout on / off
RUNNING = "shift/running"  # running variance / that in evaluation
REPAIRED = "recalibrated/running"  # the same, after re-estimation
LOSS, ACCURACY = "recalibrated/loss", "recalibrated/accuracy"  # of held-out images, after it


def measure_shift(
    network: nn.Module, training: list[Any], held_out: list[Any]
) -> dict[str, list[float]]:
    """Measures the shift at the worst BatchNorm, before and after ``recalibrate``.

    Args:
        network: trained; its running statistics are renewed.
        training: batches of (images, labels), from which statistics are estimated.
        held_out: the same, of which loss and accuracy are.

    Returns:
        A value by metric in the form of a run's curves; nothing where no BatchNorm is.
    """
    before = variance_shift(network, training).layers
    if not before:
        return {}
    scores = recalibrate(network, training, held_out=held_out).after
    assert scores is not None
    after = variance_shift(network, training).layers
    found = {
        SHIFT: farthest(layer.ratio for layer in before),
        RUNNING: farthest(layer.running_ratio for layer in before),
        REPAIRED: farthest(layer.running_ratio for layer in after),
        LOSS: scores["nll"],
        ACCURACY: scores["accuracy"],
    }
    return {name: [value] for name, value in found.items() if value is not None}


def farthest(ratios: Iterable[float]) -> float | None:
    """The ratio that is farthest from 1 in the logarithm; NaN is none."""
    known = [ratio for ratio in ratios if ratio > 0]
    return max(known, key=lambda ratio: abs(math.log(ratio)), default=None)
