from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from zoo.errors import UserError
from zoo.tasks import graphs

# Skipped, and said: no machine without one can record. What the recording does beside what CUDA
# does for it is tested on every machine, by the tests that follow.
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="recording is CUDA's")


class Descent(Optimizer):
    """The least that can be recorded, on any device: torch's own refuse to on a CPU."""

    def __init__(self, parameters, lr: float) -> None:
        super().__init__(parameters, {"lr": lr, "capturable": False})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter -= group["lr"] * parameter.grad


def train(kind: type[Optimizer], device: str, recorded: bool) -> Tensor:
    """Ten steps of a small network at a falling learning rate: its final weights."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)).to(device)
    optimizer = kind(network.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda index: 1 / (1 + index))

    def step(x: Tensor) -> Sequence[Tensor]:
        optimizer.zero_grad()
        loss = network(x).square().mean()
        loss.backward()
        optimizer.step()
        return [loss.detach()]

    once = graphs.StepGraph(step, [optimizer], torch.device(device)) if recorded else step
    for index in range(10):
        once(torch.full((3, 4), float(index), device=device))
        schedule.step()
        assert not recorded or all(p.grad is None for p in network.parameters())
    return torch.cat([p.detach().flatten() for p in network.parameters()])


@pytest.mark.filterwarnings("ignore:Detected call of")
def test_steps_through_a_graph_are_the_steps_as_written(recorded_on_the_cpu: list[int]) -> None:
    torch.testing.assert_close(train(Descent, "cpu", True), train(Descent, "cpu", False))
    assert len(recorded_on_the_cpu) == 10 - graphs.WARMUP


@needs_cuda
@pytest.mark.parametrize("kind", [Descent, torch.optim.Adam])
def test_replayed_updates_are_the_updates_as_written(kind: type[Optimizer]) -> None:
    torch.testing.assert_close(train(kind, "cuda", True), train(kind, "cuda", False))


@pytest.mark.filterwarnings("ignore:.*CUDA is not available")
def test_a_step_is_recorded_once_and_keeps_no_weights_half_precision(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With stand-ins for torch's two names alone."""
    said: list[str] = []

    class Graph:
        def replay(self) -> None:
            said.append("replay")

    @contextmanager
    def capture(graph: Graph, capture_error_mode: str) -> Iterator[None]:
        said.append(f"begin {capture_error_mode}")
        yield
        said.append("end")

    def step(x: Tensor) -> Sequence[Tensor]:
        said.append(f"step, cache {torch.is_autocast_cache_enabled()}")
        return [x + 1]

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    assert torch.is_autocast_cache_enabled()
    replay = graphs.capture(step, [torch.zeros(2)])
    assert said == ["begin thread_local", "step, cache False", "end"]
    assert torch.is_autocast_cache_enabled()
    first = replay()
    assert replay()[0] is first[0]  # the same memory, which the graph fills anew
    assert said[3:] == ["replay", "replay"]


def test_the_first_steps_and_other_shapes_are_not_replayed(recorded_on_the_cpu: list[int]) -> None:
    seen: list[Tensor] = []

    def step(x: Tensor) -> Sequence[Tensor]:
        seen.append(x)
        return [x.sum()]

    graph = graphs.StepGraph(step, [], torch.device("cpu"))
    sizes = [2] * graphs.WARMUP + [2, 2, 3, 2]
    given = [torch.full((size,), float(index)) for index, size in enumerate(sizes)]
    for x in given:
        assert graph(x)[0] == x.sum()
    kept = seen[graphs.WARMUP]
    replayed = [x is kept for x in seen]
    assert replayed == [False] * graphs.WARMUP + [True, True, False, True]
    assert seen[-2] is given[-2]


def test_a_checkpoint_of_a_recorded_run_loads_anywhere() -> None:
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.Adam([parameter], lr=0.5)
    parameter.grad = torch.ones(2)
    optimizer.step()
    graphs.make_capturable(optimizer, torch.device("cpu"))
    group = optimizer.param_groups[0]
    assert isinstance(group["lr"], Tensor)
    assert group["capturable"]
    state = optimizer.state_dict()
    graphs.make_portable([state])
    again = torch.optim.Adam([parameter], lr=0.1)
    again.load_state_dict(state)
    assert again.param_groups[0]["lr"] == 0.5
    assert not again.param_groups[0]["capturable"]
    assert isinstance(group["lr"], Tensor)  # the run goes on
    again.step()


def test_what_a_recording_reads_is_on_its_device() -> None:
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.Adam([parameter])
    parameter.grad = torch.ones(2)
    optimizer.step()
    graphs.make_capturable(optimizer, torch.device("meta"))  # any but the one tensors come on
    assert optimizer.param_groups[0]["lr"].device.type == "meta"
    assert optimizer.state[parameter]["step"].device.type == "meta"


def test_an_optimizer_that_cannot_be_recorded_is_named() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))])
    with pytest.raises(UserError, match=r"model\.cuda_graph: SGD cannot be recorded"):
        graphs.make_capturable(optimizer, torch.device("cpu"))
