"""Detects NaN and infinity without a step that waits for its device."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor, nn

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


def not_finite(module: nn.Module) -> str | None:
    """Finds the first entry of a module's state that holds a NaN or an infinity."""
    state = module.state_dict()
    floating = {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}
    if not floating:
        return None
    # One wait for the device in place of one a tensor.
    whole = torch.stack([tensor.isfinite().all() for tensor in floating.values()]).tolist()
    return next((name for name, fine in zip(floating, whole, strict=True) if not fine), None)
