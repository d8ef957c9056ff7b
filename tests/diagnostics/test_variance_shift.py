from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import pytest
import torch
from matplotlib import image
from torch import nn

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
    assert text.splitlines()[-2].endswith("<-")
    assert shift.layers[0].ratio == 1
    assert abs(math.log(shift.layers[1].ratio)) > NOTHING
    assert shift.worst is shift.layers[0]  # fresh running statistics fit no data at all
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
