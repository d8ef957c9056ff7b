"""Timing several ways of doing the same, in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any


def medians(calls: Mapping[str, Callable[[], Any]], rounds: int) -> list[float]:
    """Median seconds of each call, called in turns; a first turn warms up and does not count."""
    times: dict[str, list[float]] = {who: [] for who in calls}
    for turn in range(rounds + 1):
        for who, call in calls.items():
            start = time.perf_counter()
            call()
            if turn:
                times[who].append(time.perf_counter() - start)
    return [statistics.median(measured) for measured in times.values()]
