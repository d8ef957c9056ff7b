from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import zoo
from zoo.diagnostics.recalibrate import PooledMoments, estimate_running_statistics


def batches(count: int = 7, size: int = 16) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, 6, generator=generator) * (i + 1) + i for i in range(count)]


def test_pooled_moments_equal_those_of_one_huge_batch() -> None:
    moments = PooledMoments()
    parts = [torch.randn(n, 3, 4, 4) * n + 100 for n in (2, 7, 31)]
    for part in parts:
        moments.update(part)
    mean, variance = moments.reduce()
    whole = torch.cat(parts).double()
    torch.testing.assert_close(mean, whole.mean((0, 2, 3)), rtol=1e-6, atol=0)
    torch.testing.assert_close(variance, whole.var((0, 2, 3)), rtol=1e-5, atol=0)


@pytest.mark.parametrize("momentum", [0.1, None], ids=["moving", "cumulative"])
def test_statistics_are_pooled_with_dropout_off_and_all_else_left_alone(momentum) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Dropout(0.5), nn.Linear(6, 5), nn.BatchNorm1d(5, momentum=momentum), nn.ReLU()
    )
    model[3].eval()
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    assert estimate_running_statistics(model, batches()) == 1
    assert torch.equal(state, torch.get_rng_state())

    values = model[1](torch.cat(batches())).double()
    torch.testing.assert_close(model[2].running_mean.double(), values.mean(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model[2].running_var.double(), values.var(0), rtol=1e-5, atol=1e-5)
    for name, value in model.state_dict().items():
        if not name.startswith("2.running"):
            assert torch.equal(value, before[name]), name
    assert [module.training for module in model] == [True, True, True, False]
    assert not model[2]._forward_pre_hooks


def test_frozen_batchnorm_is_left_alone() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
    zoo.freeze(model, keep=("2",))
    before = model[1].running_mean.clone()
    assert estimate_running_statistics(model, batches()) == 0
    assert torch.equal(model[1].running_mean, before)


def test_a_failing_forward_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5)).train()
    before = copy.deepcopy(model.state_dict())

    def broken():
        yield batches()[0]
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        estimate_running_statistics(model, broken())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.training
    assert model[1].training
