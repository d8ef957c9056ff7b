"""A training step as one CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from zoo.errors import UserError

WARMUP = 3  # steps as they are written before one is recorded: torch's documentation asks for them

Step = Callable[..., Sequence[Tensor]]


class StepGraph:
    """Runs a training step, recorded once, by one launch.

    A small network's step is thousands of kernels, each over before the next is launched: a GPU
    waits for Python. Replayed, they follow each other without it. The first steps run as they are
    written, and so does one whose tensors have another shape.

    Args:
        step: takes tensors and returns tensors, and is the whole of a step: forward, backward and
            the optimizers'. It draws nothing on the CPU and asks the device for no value.
        optimizers: what it steps. Their learning rates become tensors on the device, which
            schedulers fill in.
        device: a CUDA device.

    Raises:
        UserError: an optimizer that cannot be recorded.
    """

    def __init__(
        self,
        step: Step,
        optimizers: Iterable[torch.optim.Optimizer],
        device: torch.device,
    ) -> None:
        self.step, self.optimizers = step, list(optimizers)
        for optimizer in self.optimizers:
            make_capturable(optimizer, device)
        self.taken = 0
        self.recorded: tuple[list[Tensor], Callable[[], Sequence[Tensor]]] | None = None

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor]:
        """What the step returns; where it was replayed, valid until the next call."""
        self.taken += 1
        if self.recorded is None and self.taken > WARMUP:
            kept = [each.clone() for each in inputs]
            self.recorded = kept, capture(self.step, kept)
        if self.recorded is None or not _alike(self.recorded[0], inputs):
            outputs = on_side_stream(self.step, inputs)
        else:
            kept, replay = self.recorded
            for own, given in zip(kept, inputs, strict=True):
                own.copy_(given)
            outputs = replay()
        # The step has used them; those of a recorded one live in the graph's own memory.
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        return outputs


def capture(step: Step, inputs: Sequence[Tensor]) -> Callable[[], Sequence[Tensor]]:
    """Records a step on tensors that are to stay where they are; what is returned repeats it."""
    graph = torch.cuda.CUDAGraph()
    # Autocast would keep the half precision of a weight as it was before recording. And another
    # thread may use the device meanwhile: a loader's, to pin memory.
    with (
        torch.autocast(
            "cuda",
            torch.get_autocast_dtype("cuda"),
            torch.is_autocast_enabled("cuda"),
            cache_enabled=False,
        ),
        torch.cuda.graph(graph, capture_error_mode="thread_local"),
    ):
        outputs = step(*inputs)

    def replay() -> Sequence[Tensor]:
        graph.replay()
        return outputs

    return replay


def on_side_stream(step: Step, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    """The step on a stream of its own, as recording will have it."""
    current, own = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
    own.wait_stream(current)
    with torch.cuda.stream(own):
        outputs = step(*inputs)
    current.wait_stream(own)
    return outputs


def _alike(kept: Sequence[Tensor], given: Sequence[Tensor]) -> bool:
    return [each.shape for each in kept] == [each.shape for each in given]


def make_capturable(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Moves to the device what an optimizer would read on the CPU: learning rates and counts.

    Raises:
        UserError: it has no such mode.
    """
    for group in optimizer.param_groups:
        if "capturable" not in group:
            raise UserError(
                f"model.cuda_graph: {type(optimizer).__name__} cannot be recorded: choose adam, "
                "adamw or muon, or set model.cuda_graph false"
            )
        group["capturable"] = True
        group["lr"] = torch.tensor(float(group["lr"]), device=device)
    for state in optimizer.state.values():
        if "step" in state:
            state["step"] = torch.tensor(float(state["step"]), device=device)
    # torch warns of a step that is not recorded; the first ones are not, on purpose.
    optimizer._warned_capturable_if_run_uncaptured = True


def make_portable(states: Iterable[dict[str, Any]]) -> None:
    """Undoes ``make_capturable`` in optimizers' states, for a checkpoint that loads anywhere."""
    for state in states:
        for group in state["param_groups"]:
            if group.get("capturable"):
                group["capturable"], group["lr"] = False, float(group["lr"])
