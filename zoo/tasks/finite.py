"""Detects NaN and infinity without a step that waits for its device."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

LATE = 20  # steps, at most, until a loss is read


class LateLosses:
    """Reads the losses of a CUDA device some steps after they are computed.

    Each is copied into pinned memory as soon as it is there, and read once its event has passed. A
    host that is further ahead of its device than ``LATE`` steps waits for the oldest of them, never
    for the step that it has just launched.

    Args:
        device: where losses are computed.
    """

    def __init__(self, device: torch.device) -> None:
        self.values = torch.zeros(LATE, pin_memory=device.type == "cuda")
        self.events = [new_event() for _ in range(LATE)]
        self.asked: deque[tuple[int, int]] = deque()  # steps, and where their losses arrive
        self.count = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        return None  # events are not copied, and a copy of a task has no loss yet

    def add(self, step: int, loss: Tensor) -> tuple[int, float] | None:
        """Asks for a loss, and reads those that have arrived.

        Returns:
            Step and value of the first that is not finite.
        """
        found = self.read(wait=len(self.asked) == LATE)
        place = self.count % LATE
        self.count += 1
        self.values[place].copy_(loss.detach(), non_blocking=True)
        self.events[place].record()
        self.asked.append((step, place))
        return found

    def read(self, wait: bool = False, everything: bool = False) -> tuple[int, float] | None:
        """Reads what has arrived; with ``wait`` the oldest, and with ``everything`` all of it."""
        while self.asked:
            step, place = self.asked[0]
            if wait or everything:
                self.events[place].synchronize()
            elif not self.events[place].query():
                return None
            wait = False
            self.asked.popleft()
            value = float(self.values[place])
            if not abs(value) < float("inf"):
                return step, value
        return None


def new_event() -> Any:
    """Marks a place in the current stream of a CUDA device."""
    return torch.cuda.Event()  # type: ignore[no-untyped-call]


def not_finite(state: Any) -> str | None:
    """Finds the first entry of a state that holds a NaN or an infinity: its keys, with dots.

    Args:
        state: tensors in mappings and lists, however deep; everything else is left out.
    """
    devices: dict[torch.device, dict[str, Tensor]] = {}
    for name, tensor in _floating(state, ""):
        devices.setdefault(tensor.device, {})[name] = tensor.isfinite().all()
    for found in devices.values():  # one wait for a device in place of one a tensor
        for name, fine in zip(found, torch.stack(list(found.values())).tolist(), strict=True):
            if not fine:
                return name
    return None


def _floating(state: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(state, Tensor):
        if state.is_floating_point():
            yield name, state
    elif isinstance(state, Mapping | list | tuple):
        parts = state.items() if isinstance(state, Mapping) else enumerate(state)
        for key, part in parts:
            yield from _floating(part, f"{name}.{key}" if name else str(key))
