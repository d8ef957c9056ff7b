from __future__ import annotations

import pytest
import timm.optim.muon
import torch
from torch import nn

import zoo
from zoo.errors import UserError
from zoo.networks import ResNet
from zoo.tasks import optim
from zoo.tasks.optim import Muon, make_optimizer
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


def test_unknown_names_and_arguments_are_told() -> None:
    with pytest.raises(UserError, match="no optimizer named 'adamww'; did you mean 'adamw'"):
        make_optimizer(network(), "adamww", 0.1, 0, 0.9)
    with pytest.raises(UserError, match=r"model\.optimizer_args: .*betta"):
        make_optimizer(network(), "adamw", 0.1, 0, 0.9, {"betta": 1})


@pytest.mark.parametrize(
    ("name", "extra", "message"),
    [
        ("muon", {"adjust_lr_fn": "nonsense"}, 'Invalid scaling function "nonsense"'),
        ("muon", {"ns_steps": "many"}, "'str' and 'int'"),
        ("muon", {"ns_coefficients": "best"}, "Unknown coefficients preset 'best'"),
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


def test_values_that_an_optimizer_refuses_are_told() -> None:
    with pytest.raises(UserError, match=r"model\.optimizer sgd: Nesterov momentum requires"):
        make_optimizer(network(), "sgd", 0.1, 0, 0.0)


def test_what_is_left_to_timms_muon_is_in_float32_where_bfloat16_is_imitated(monkeypatch) -> None:
    def update(imitated: bool) -> tuple[torch.optim.Optimizer, torch.Tensor]:
        monkeypatch.setattr("zoo.tasks.optim.imitates_bfloat16", lambda kind: imitated)
        torch.manual_seed(0)
        model = nn.Linear(32, 16, bias=False)
        optimizer = make_optimizer(model, "muon", 1.0, 0.0, 0.0, {"scale_eps": True})
        before = model.weight.detach().clone()
        model.weight.grad = torch.randn(16, 32)
        optimizer.step()
        return optimizer, (before - model.weight).detach()

    theirs = timm.optim.muon.zeropower_via_newtonschulz
    ours, exact = update(True)
    usual, rounded = update(False)
    assert (ours.dtype, usual.dtype) == (torch.float32, torch.bfloat16)
    exact, rounded = exact / (0.2 * 32**0.5), rounded / (0.2 * 32**0.5)  # Muon's scale of a matrix
    assert not torch.equal(exact.bfloat16().float(), exact)
    torch.testing.assert_close(rounded, exact, atol=0.02, rtol=0.1)
    assert timm.optim.muon.zeropower_via_newtonschulz is theirs


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"nesterov": True, "adjust_lr_fn": "original"}, {"ns_steps": 7}]
)
def test_muon_steps_matrices_together_as_timms_does_one_by_one(
    monkeypatch, options: dict, channels_last: bool
) -> None:
    singly: list[torch.Size] = []
    iterate = timm.optim.muon.zeropower_via_newtonschulz

    def counted(matrix: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        singly.append(matrix.shape)
        return iterate(matrix, *args, **{**kwargs, "dtype": torch.float32})

    monkeypatch.setattr(timm.optim.muon, "zeropower_via_newtonschulz", counted)

    def run(kind: type[timm.optim.Muon], half: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        convolutions = [nn.Conv2d(6, 8, 3), nn.Conv2d(6, 8, 3), nn.Conv2d(6, 8, 1)]
        model = nn.Sequential(*convolutions, nn.Linear(8, 24), nn.Linear(24, 8), nn.Linear(16, 16))
        if channels_last:
            model.to(memory_format=torch.channels_last)
        optimizer = make_optimizer(model, "muon", 0.1, 0.1, 0.5, options)
        optimizer.__class__ = kind
        singly.clear()
        for _ in range(3):
            for parameter in model.parameters():
                parameter.grad = torch.randn(parameter.shape)  # contiguous whatever its parameter
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                optimizer.step()
        return [parameter.detach() for parameter in model.parameters()]

    theirs = run(timm.optim.Muon, half=False)
    assert len(singly) == 3 * 6
    for half in (False, True):
        ours = run(Muon, half)
        assert not singly
        for one, other in zip(ours, theirs, strict=True):
            # Steps are about 0.1 large. Squared, a square matrix's least singular values come near
            # float32's precision; timm's bfloat16 is off by ten times as much.
            torch.testing.assert_close(one, other, rtol=0, atol=2e-4)


def test_orthogonalized_matrices_have_singular_values_near_one() -> None:
    matrices = torch.randn(3, 24, 60, generator=torch.Generator().manual_seed(0))
    matrices = matrices * torch.logspace(0, -1, 24)[:, None]
    coefficients = timm.optim.muon._COEFFICIENTS["quintic"]
    result = optim.orthogonalize(matrices.bfloat16(), 5, coefficients)
    assert result.dtype == torch.float32
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.7
    assert values.max() < 1.3
    # Nearest is the polar factor, which their mean inner product with it compares them to.
    left, _, right = torch.linalg.svd(matrices.bfloat16().float(), full_matrices=False)
    assert ((left @ right) * result).sum((1, 2)).div(24).min() > 0.9


def test_muons_matrices_are_timms_on_another_device() -> None:
    asked: list[dict] = []
    tensors = [torch.zeros(3, 3, device="meta")]
    options = {"conv_mode": "flatten", "scale_eps": False, "lr": 0.1}
    optim._muon(
        lambda *states, **options: asked.append(options), tensors, tensors, tensors, **options
    )
    assert asked == [options]


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_muons_fallback_steps_as_timms_does_by_a_fused_kernel(monkeypatch, weight_decay) -> None:
    fused: list[int] = []
    kernel = optim.adamw
    monkeypatch.setattr(
        optim,
        "adamw",
        lambda parameters, *args, **options: (
            fused.append(len(parameters)) or kernel(parameters, *args, **options)
        ),
    )

    timms = timm.optim.muon.adamw

    def run(kind: type[timm.optim.Muon]) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(7, 12), nn.Linear(12, 8), nn.LayerNorm(8))
        model.fallback_parameters = lambda: {"0.*"}
        options = {"betas": [0.0, 0.9], "fallback_lr_scale": 0.3}
        optimizer = make_optimizer(model, "muon", 0.1, weight_decay, 0.5, options)
        optimizer.__class__ = kind
        for _ in range(4):
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()
        return [parameter.detach() for parameter in model.parameters()]

    theirs = run(timm.optim.Muon)
    assert not fused
    ours = run(Muon)
    assert sum(fused) == 4 * 4  # the table, a bias and a norm's two, four times
    torch.testing.assert_close(ours[1], theirs[1], atol=0.02, rtol=0.1)  # in what precision it is
    for one, other in zip(ours[:1] + ours[2:], theirs[:1] + theirs[2:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert timm.optim.muon.adamw is timms


def test_muons_fallback_is_timms_on_another_device() -> None:
    asked: list[dict] = []
    tensors = [torch.zeros(3, device="meta")]
    optim._fused_adamw(
        lambda *states, **options: asked.append(options),
        *(tensors, tensors, tensors, tensors, [], [torch.zeros(())]),
        lr=0.1,
        caution=False,
    )
    assert asked == [{"lr": 0.1, "caution": False}]
