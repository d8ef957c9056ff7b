"""Timing several ways of doing the same, in turns, and what they allocate."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch


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


def compare(what: str, calls: Mapping[str, Callable[[], Any]], rounds: int) -> None:
    """Prints the medians of two calls, and how often the second goes into the first."""
    slow, fast = medians(calls, rounds)
    (peer, ours) = calls
    print(
        f"{what}: {peer} {1000 * slow:.2f} ms, {ours} {1000 * fast:.2f} ms, "
        f"ratio {slow / fast:.2f}",
        flush=True,
    )


def print_peaks(calls: Mapping[str, Callable[[], Any]]) -> None:
    """Prints the most that each call allocates at once."""
    peaks = (f"{who} {peak_bytes(call) / 2**20:.1f} MiB" for who, call in calls.items())
    print(f"  peak: {', '.join(peaks)}", flush=True)


def peak_bytes(step: Callable[[], None]) -> int:
    """The most that was allocated at once during a step, over what was before."""
    with torch.profiler.profile(profile_memory=True) as profile:
        step()
    now = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most
