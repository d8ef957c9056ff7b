from __future__ import annotations

import random

import pytest

from tests.tasks import tape
from zoo.tasks import finite, recorded_step


@pytest.fixture
def recorded_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Recording is CUDA's; a tape of a step's operations takes its place.

    Returns:
        What grows by one with every replay.
    """
    replays: list[int] = []
    monkeypatch.setattr(recorded_step, "DEVICE", "cpu")
    monkeypatch.setattr(recorded_step, "capture", tape.recorder(replays))
    monkeypatch.setattr(recorded_step, "on_side_stream", lambda step: step())
    monkeypatch.setattr(recorded_step, "waiting", tape.waiting)
    # Dropout draws on the device that records, which here is the CPU.
    monkeypatch.setattr(recorded_step, "host_draws", random.getstate)
    monkeypatch.setattr(finite, "new_event", lambda: tape.Passed(delay=3))
    return replays
