from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from zoo.errors import UserError
from zoo.tasks import graphs

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="recording is CUDA's")


def stand_in(step, inputs):
    return lambda: step(*inputs)


def test_the_first_steps_and_other_shapes_are_not_replayed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[Tensor] = []

    def step(x: Tensor) -> Sequence[Tensor]:
        seen.append(x)
        return [x.sum()]

    monkeypatch.setattr(graphs, "record", stand_in)
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


def test_an_optimizer_that_cannot_be_recorded_is_named() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))])
    with pytest.raises(UserError, match=r"model\.cuda_graph: SGD cannot be recorded"):
        graphs.make_capturable(optimizer, torch.device("cpu"))


@needs_cuda
def test_replayed_updates_are_the_updates_as_written() -> None:
    def run(recorded: bool) -> Tensor:
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)).cuda()
        optimizer = torch.optim.Adam(network.parameters(), lr=0.01)

        def step(x: Tensor) -> Sequence[Tensor]:
            optimizer.zero_grad()
            loss = network(x).square().mean()
            loss.backward()
            optimizer.step()
            return [loss.detach()]

        once = graphs.StepGraph(step, [optimizer], torch.device("cuda")) if recorded else step
        for index in range(10):
            for group in optimizer.param_groups:
                rate = 0.01 / (1 + index)
                if recorded:
                    group["lr"].fill_(rate)
                else:
                    group["lr"] = rate
            once(torch.full((3, 4), float(index), device="cuda"))
        return torch.cat([p.detach().flatten() for p in network.parameters()])

    torch.testing.assert_close(run(True), run(False))
