from __future__ import annotations

import pytest
import torch
from torch import nn

import zoo
from zoo.errors import UserError
from zoo.networks import ResNet
from zoo.tasks import optim
from zoo.tasks.optim import make_optimizer
from zoo.tasks.schedule import make_schedule


def network() -> ResNet:
    return ResNet(5, 1, "basic", (1,), 8, "small")


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
def test_norms_and_biases_are_never_decayed(name: str) -> None:
    model = network()
    optimizer = make_optimizer(model, name, 0.1, 0.01, 0.9)
    decayed = {
        id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]
    }
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    spared = {id(p) for m in norms for p in m.parameters()} | {id(model.fc.bias)}
    everything = {id(p) for p in model.parameters()}
    assert decayed == everything - spared
    optimized = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert optimized == everything


def test_sgd_is_nesterov() -> None:
    assert all(g["nesterov"] for g in make_optimizer(network(), "sgd", 0.1, 0, 0.9).param_groups)


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
def test_every_optimizer_learns(name: str) -> None:
    torch.manual_seed(0)
    model = network().train()
    optimizer = make_optimizer(model, name, {"sgd": 0.1}.get(name, 0.01), 0.0, 0.9)
    labels = torch.arange(40) % 5
    images = torch.randn(5, 1, 8, 8)[labels] + 0.5 * torch.randn(40, 1, 8, 8)
    losses = []
    for _ in range(100):
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_frozen_parameters_are_left_out() -> None:
    model = zoo.freeze(network())
    optimizer = make_optimizer(model, "sgd", 0.1, 0.01, 0.9)
    assert sum(len(g["params"]) for g in optimizer.param_groups) == 2
    model.requires_grad_(False)
    with pytest.raises(UserError, match="nothing to train"):
        make_optimizer(model, "sgd", 0.1, 0.01, 0.9)


def test_unknown_names_and_arguments_are_reported() -> None:
    with pytest.raises(UserError, match="no optimizer named 'adamww'; did you mean 'adamw'"):
        make_optimizer(network(), "adamww", 0.1, 0, 0.9)
    with pytest.raises(UserError, match=r"model\.optimizer_args: .*betta"):
        make_optimizer(network(), "adamw", 0.1, 0, 0.9, {"betta": 1})


@pytest.mark.parametrize(
    ("name", "extra", "message"),
    [
        ("adamp", {"betas": [0.9, "x"]}, "'x'.*'str' and 'int'"),
    ],
)
def test_values_that_only_a_step_reads_are_told_before_the_first(
    name: str, extra: dict, message: str
) -> None:
    with pytest.raises(UserError, match=rf"model\.optimizer_args .*{message}"):
        make_optimizer(network(), name, 0.1, 0, 0.9, extra)


def test_trying_values_out_draws_no_number_and_asks_for_no_second_derivative() -> None:
    class Drawing(torch.optim.SGD):
        def step(self, closure=None):
            torch.rand(3)

    state = torch.get_rng_state()
    optim._rehearse(lambda module: Drawing(module.parameters(), lr=0.1), {})
    assert torch.equal(torch.get_rng_state(), state)
    model = network()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    make_optimizer(model, "adahessian", 0.1, 0, 0.9, {"eps": 1e-8})
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        ("linear", [0.5, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]),
        ("cosine", [0.5, 1, 1, 0.9619, 0.8536, 0.6913, 0.5, 0.3087, 0.1464, 0.0381]),
        ("trapezoid", [0.5, 1, 1, 1, 1, 1, 1, 1, 0.8333, 0.4167]),
    ],
)
@pytest.mark.parametrize("warmup", [0.2, 2])
def test_schedules_step_by_step(schedule, expected, warmup) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make_schedule(optimizer, schedule, warmup, 10)
    rates = []
    for _ in range(10):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx(expected, abs=1e-4)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(float(schedule == "constant"), abs=1e-9)


def test_values_that_an_optimizer_refuses_are_reported() -> None:
    with pytest.raises(UserError, match=r"model\.optimizer sgd: Nesterov momentum requires"):
        make_optimizer(network(), "sgd", 0.1, 0, 0.0)
