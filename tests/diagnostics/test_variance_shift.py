from __future__ import annotations

import copy
import json
import math
from collections import UserDict
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib import image
from torch import nn
from torch.nn import functional as F

import zoo
from zoo.diagnostics.variance_shift import NOTHING
from zoo.networks import ResNet


def batches(count: int = 7, size: int = 16) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, 6, generator=generator) * (i + 1) + i for i in range(count)]


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("relu", [False, True], ids=["normal", "relu"])
def test_dropout_linear_batchnorm_follows_the_exact_formula(rate, relu) -> None:
    generator = torch.Generator().manual_seed(1)
    loader = [torch.randn(1024, 32, generator=generator) for _ in range(64)]
    if relu:
        loader = [x.relu() for x in loader]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Dropout(rate), nn.Linear(32, 8), nn.BatchNorm1d(8))
    (layer,) = zoo.variance_shift(model, loader).layers
    x, w = torch.cat(loader).double(), model[1].weight.detach().double()
    explained = torch.einsum("ci,ij,cj->c", w, torch.cov(x.T), w)
    exact = 1 + rate / (1 - rate) * (w.square() @ x.square().mean(0)) / explained
    torch.testing.assert_close(layer.channels.double(), exact, rtol=0.02, atol=0)
    assert layer.module == "2"
    assert layer.ratio == pytest.approx(float(exact.median()), rel=0.02)
    assert layer.drift < 0.05


def test_without_dropout_before_it_nothing_shifts() -> None:
    torch.manual_seed(0)
    model = ResNet(num_classes=4, in_channels=1, layers=[1, 2, 1], width=8, stem="small")
    loader = [torch.randn(32, 1, 16, 16) for _ in range(4)]
    zoo.recalibrate(model, loader)
    shift = zoo.variance_shift(model, loader)
    assert len(shift.layers) == 11
    for layer in shift.layers:
        assert layer.ratio == 1
        assert layer.running_ratio == pytest.approx(1, abs=0.01)
        assert layer.drift == 0


def test_the_running_ratio_remembers_dropout_and_recalibration_forgets_it() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 4), nn.BatchNorm1d(4, momentum=None))
    loader = batches(8, 256)
    model.train()
    for x in loader * 4:
        model(x)
    (layer,) = zoo.variance_shift(model, loader).layers
    assert layer.ratio > 1.3
    assert layer.running_ratio == pytest.approx(layer.ratio, rel=0.1)
    zoo.recalibrate(model, loader)
    (layer,) = zoo.variance_shift(model, loader).layers
    assert layer.ratio > 1.3  # what dropout does stays what it does
    assert layer.running_ratio == pytest.approx(1, abs=0.01)


def test_the_model_comes_out_untouched_and_frozen_layers_are_left_out() -> None:
    model = nn.Sequential(
        nn.Dropout(0.5), nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 4), nn.BatchNorm1d(4)
    )
    zoo.freeze(model, keep=("3", "4"))
    model.train()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    shift = zoo.variance_shift(model, batches())
    assert [layer.module for layer in shift.layers] == ["4"]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [module.training for module in model] == [True, True, False, True, True]


def test_a_constant_channel_says_nothing() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 3), nn.BatchNorm1d(3))
    with torch.no_grad():
        model[1].weight[0] = 0
    (layer,) = zoo.variance_shift(model, batches()).layers
    assert math.isnan(layer.channels[0])
    assert layer.ratio > 1
    assert (
        json.loads(zoo.variance_shift(model, batches()).to_json())["layers"][0]["channels"][0]
        is None
    )


def test_table_json_and_picture(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 4))
    model.append(nn.BatchNorm1d(4))
    shift = zoo.variance_shift(model, batches())
    text = str(shift)
    assert text.splitlines()[-3].endswith("<-")
    assert shift.layers[0].ratio == 1
    assert abs(math.log(shift.layers[1].ratio)) > NOTHING
    assert shift.worst is shift.layers[1]
    content = json.loads(shift.to_json())
    assert content["layers"][1]["ratio"] == pytest.approx(shift.layers[1].ratio, abs=1e-6)
    shift.draw(tmp_path / "deep" / "shift.png")
    picture = image.imread(tmp_path / "deep" / "shift.png")
    assert picture.shape[0] > 300
    assert list((tmp_path / "deep").iterdir()) == [tmp_path / "deep" / "shift.png"]
    assert "nothing can shift" in str(zoo.variance_shift(nn.Linear(6, 2), batches()))


def test_a_batch_that_a_forward_overwrites_is_measured_as_it_was() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 4), nn.BatchNorm1d(4))
    in_place = nn.Sequential(nn.Dropout(0.5, inplace=True), plain[1], plain[2])
    loader, before = batches(), batches()
    ratio = zoo.variance_shift(plain, loader).layers[0].ratio
    assert zoo.variance_shift(in_place, loader).layers[0].ratio == ratio > 1.2
    assert all(torch.equal(a, b) for a, b in zip(loader, before, strict=True))


def test_a_head_that_runs_in_training_only_is_left_out() -> None:
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.extra = nn.BatchNorm1d(6), nn.BatchNorm1d(6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.norm(x)
            return x + self.extra(x) if self.training else x

    shift = zoo.variance_shift(Auxiliary(), batches())
    assert [layer.module for layer in shift.layers] == ["norm"]


def test_batches_of_other_forms() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 4), nn.BatchNorm1d(4))
    plain = zoo.variance_shift(model, batches()).layers[0]
    tuples = zoo.variance_shift(model, [(x, 0) for x in batches()]).layers[0]
    named = zoo.variance_shift(model, [{"input": x} for x in batches()]).layers[0]
    own = zoo.variance_shift(
        model, [[0, x] for x in batches()], forward=lambda batch: model(batch[1])
    ).layers[0]
    assert plain.ratio == tuples.ratio == named.ratio == own.ratio
    few = zoo.variance_shift(model, batches(), batches=2).layers[0]
    assert few.ratio != plain.ratio
    with pytest.raises(zoo.UserError, match="no batch"):
        zoo.variance_shift(model, [])


def forwarded(self: Any, h: torch.Tensor) -> torch.Tensor:
    return self.norm.forward(h)


def functional(self: Any, h: torch.Tensor) -> torch.Tensor:
    norm = self.norm
    return F.batch_norm(h, norm.running_mean, norm.running_var, training=self.training)


def torchs_own(self: Any, h: torch.Tensor) -> torch.Tensor:
    n = self.norm
    return torch.batch_norm(
        h, n.weight, n.bias, n.running_mean, n.running_var, self.training, 0.1, 1e-5, False
    )


def by_keywords(self: Any, h: torch.Tensor) -> torch.Tensor:
    n = self.norm
    return F.batch_norm(
        input=h, running_var=n.running_var, running_mean=n.running_mean, training=self.training
    )


class Dropped(nn.Module):
    """Dropout, a linear layer, and a BatchNorm that is reached in a given way."""

    def __init__(self, normalize: Any) -> None:
        super().__init__()
        self.linear, self.norm, self.normalize = nn.Linear(6, 5), nn.BatchNorm1d(5), normalize

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.normalize(self, self.linear(F.dropout(x, 0.5, self.training)))


WAYS = [forwarded, functional, torchs_own, by_keywords]


@pytest.mark.parametrize("way", WAYS)
def test_a_batchnorm_is_measured_and_renewed_however_it_is_called(way) -> None:
    torch.manual_seed(0)
    model = Dropped(way)
    loader = [torch.randn(500, 6) + 1 for _ in range(4)]
    for batch in loader * 20:
        model(batch)
    values = model.linear(torch.cat(loader)).detach()
    remembered = (model.norm.running_var / values.var(0)).median()
    (layer,) = zoo.variance_shift(model, loader).layers
    assert layer.module == "norm"
    assert layer.running_ratio == pytest.approx(float(remembered), rel=1e-3)
    assert layer.ratio == pytest.approx(float(remembered), rel=0.1)
    assert remembered > 1.5
    assert zoo.recalibrate(model, loader).layers == 1
    torch.testing.assert_close(model.norm.running_mean, values.mean(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.norm.running_var, values.var(0), rtol=1e-5, atol=1e-5)
    assert model.training
    assert "forward" not in vars(model.norm)


class ByHand(nn.Module):
    """BatchNorm without any of torch's functions; its running statistics are set anew."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(5))
        self.register_buffer("running_var", torch.ones(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, var = self.running_mean, self.running_var
        if self.training:
            mean, var = x.mean(0), x.var(0, unbiased=False)
            self.running_mean = 0.9 * self.running_mean + 0.1 * mean.detach()
            self.running_var = 0.9 * self.running_var + 0.1 * x.var(0).detach()
        return (x - mean) / (var + 1e-5).sqrt()


@pytest.mark.parametrize("call", ["module", "forward"])
def test_a_batchnorm_by_hand_is_measured_and_renewed(call) -> None:
    torch.manual_seed(0)
    way = (lambda s, h: s.norm(h)) if call == "module" else (lambda s, h: s.norm.forward(h))
    model = Dropped(way)
    model.norm = ByHand()
    loader = [torch.randn(500, 6) + 1 for _ in range(4)]
    for batch in loader * 20:
        model(batch)
    values = model.linear(torch.cat(loader)).detach()
    remembered = float((model.norm.running_var / values.var(0)).median())
    (layer,) = zoo.variance_shift(model, loader).layers
    assert layer.running_ratio == pytest.approx(remembered, rel=1e-3)
    assert layer.ratio == pytest.approx(remembered, rel=0.1)
    zoo.recalibrate(model, loader)
    torch.testing.assert_close(model.norm.running_var, values.var(0), rtol=1e-5, atol=1e-5)


def test_instancenorm_with_running_statistics_is_measured_and_renewed() -> None:
    torch.manual_seed(0)
    norm = nn.InstanceNorm1d(8, track_running_stats=True)
    model = nn.Sequential(nn.Dropout(0.5), nn.Conv1d(8, 8, 1), norm)
    loader = [torch.randn(64, 8, 10) for _ in range(20)]
    for batch in loader * 15:
        model(batch)
    (layer,) = zoo.variance_shift(model, loader).layers
    assert layer.running_ratio == pytest.approx(1.98, abs=0.1)  # 1 + p / (1 - p) and its noise
    zoo.recalibrate(model, loader)
    values = model[1](torch.cat(loader)).detach()
    torch.testing.assert_close(norm.running_mean, values.mean((0, 2)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var, values.var(2).mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tool", [zoo.variance_shift, zoo.recalibrate])
@pytest.mark.parametrize("kind", ["scripted", "traced", "exported", "a part"])
def test_statistics_out_of_reach_are_no_measurement(tool, kind) -> None:
    model: nn.Module = nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 5), nn.BatchNorm1d(5))
    if kind == "traced":
        model = torch.jit.trace(model.eval(), batches()[0])
    elif kind == "exported":
        model = torch.export.export(model, (batches()[0],)).module()
    else:
        model = torch.jit.script(model)
    if kind == "a part":
        model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), model)
    with pytest.raises(zoo.UserError, match="scripted, traced or exported"):
        tool(model, batches())


def test_statistics_that_were_never_learned_are_said_to_be() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4))
    shift = zoo.variance_shift(model, batches())
    assert math.isnan(shift.layers[0].running_ratio)
    assert "never learned" in str(shift)
    assert "  <-" not in str(shift).split("<- |ln ratio|")[0]
    assert json.loads(shift.to_json())["layers"][0]["running_ratio"] is None
    model(batches()[0])
    assert "never learned" not in str(zoo.variance_shift(model, batches()))
    assert not math.isnan(zoo.variance_shift(model, batches()).layers[0].running_ratio)


def test_inputs_in_every_form() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop, self.norm = nn.Dropout(0.5), nn.BatchNorm1d(6)

        def forward(self, a: torch.Tensor, b: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
            return self.norm(self.drop(a) + b * scale)

    class Encoding(UserDict):  # as a tokenizer gives
        pass

    model, labels = Two(), torch.zeros(16)
    forms = [
        [(x, x) for x in batches()],
        [(x, x, labels) for x in batches()],
        [((x, x), labels) for x in batches()],
        [{"a": x, "b": x} for x in batches()],
        [Encoding(a=x, b=x, labels=labels) for x in batches()],
    ]
    ratios = {zoo.variance_shift(model, form).layers[0].ratio for form in forms}
    own = zoo.variance_shift(model, batches(), forward=lambda x: model(x, x))
    assert ratios == {own.layers[0].ratio}
    with pytest.raises(zoo.UserError, match=r"missing a required argument.*forward=lambda"):
        zoo.variance_shift(model, batches())
