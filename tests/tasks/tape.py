"""A CUDA graph's stand-in on a CPU: operations done again on the tensors that they had."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
READS = {aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default}


class Reads(TorchDispatchMode):
    """Finds what would wait for a device: a value that Python reads."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        if func in READS:
            ours = [f for f in traceback.extract_stack()[:-1] if "/torch/" not in f.filename]
            self.found.append(f"{func} at {ours[-1].filename}:{ours[-1].lineno}")
        return func(*args, **(kwargs or {}))


class Tape(TorchDispatchMode):
    """Writes down every operation and the tensors it reads and fills. Python is not run again.

    So whatever a step decides in Python, or takes from a number of Python's, stays as it was when
    it was recorded, as in a CUDA graph.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        if func in READS:
            raise RuntimeError(f"{func} is not permitted when stream is capturing")
        outputs = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, outputs))
        return outputs

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, outputs in self.calls:
            again = func(*args, **kwargs)
            returns = func._schema.returns
            olds, news = (each if len(returns) > 1 else (each,) for each in (outputs, again))
            for kind, old, new in zip(returns, olds, news, strict=False):
                if kind.alias_info is None:  # otherwise a view, or what was changed in place
                    for kept, made in zip(tree_leaves(old), tree_leaves(new), strict=True):
                        if isinstance(kept, Tensor):
                            kept.copy_(made)


class Passed:
    """A CUDA event that passes once it has been asked about often enough."""

    def __init__(self, delay: int) -> None:
        self.delay, self.left = delay, 0
        self.waited = 0

    def record(self) -> None:
        self.left = self.delay

    def query(self) -> bool:
        self.left -= 1
        return self.left < 0

    def synchronize(self) -> None:
        self.waited += 1
        self.left = 0


def recorder(replays: list[int]) -> Callable[..., Any]:
    """In place of ``recorded_step.capture``; every replay is counted."""

    def capture(step: Callable[[], Any], generator: torch.Generator) -> Callable[[], Any]:
        tape = Tape()
        with tape:
            outputs = step()  # which here is taken as well: it is the first replay's
        first = [True]

        def replay() -> Any:
            replays.append(len(replays))
            if not first:
                tape.replay()
            first.clear()
            return outputs

        return replay

    return capture


@contextmanager
def waiting(reasons: list[str]) -> Iterator[None]:
    """In place of ``recorded_step.waiting``."""
    found: list[str] = []
    with Reads(found):
        yield
    reasons.extend(f"it waits for a value of the device ({name})" for name in found)
