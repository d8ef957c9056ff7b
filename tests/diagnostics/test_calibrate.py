from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from torch import nn

import zoo
from tests.diagnostics.classifiers import Overconfident, drawn, logits_of


def test_the_temperature_is_the_most_likely_one_and_the_true_one() -> None:
    model, batches = Overconfident().train(), drawn(6000, seed=1)
    logits, labels = (tensor.numpy() for tensor in logits_of(batches))

    def nll(temperature: float) -> float:
        return -log_softmax(logits / temperature, 1)[np.arange(len(labels)), labels].mean()

    state = torch.get_rng_state()
    found = zoo.calibrate(model, batches)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    expected = minimize_scalar(nll, bounds=(0.1, 10), method="bounded", options={"xatol": 1e-8}).x
    assert found.temperature == pytest.approx(expected, abs=1e-4)
    assert found.temperature == pytest.approx(2.5, abs=0.1)
    assert found.images == 6000
    assert found.before["nll"] == pytest.approx(nll(1.0), abs=1e-6)
    assert found.after["nll"] == pytest.approx(nll(expected), abs=1e-6)
    assert found.after["accuracy"] == found.before["accuracy"]
    # On images that it has not seen.
    other, truth = logits_of(drawn(20_000, seed=2))
    scores = zoo.diagnostics.calibration.scores(found(other), truth)
    assert scores["ece"] < 0.012
    assert zoo.diagnostics.calibration.ece(other.softmax(1), truth) > 0.1
    assert f"temperature {found.temperature:.4f}, fitted on 6,000" in str(found)
    torch.testing.assert_close(found(other), (other / found.temperature).softmax(1))


def test_a_scale_and_a_bias_for_each_class() -> None:
    logits, labels = logits_of(drawn(6000, seed=1))
    bent = logits * torch.tensor([0.2, 0.4, 0.6, 0.8, 1.0]) + torch.tensor([3.0, 0, 0, -2, 0])

    class Bent(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    loader = [{"x": bent.float(), "labels": labels}]
    temperature = zoo.calibrate(Bent(), loader)
    vector = zoo.calibrate(Bent(), loader, method="vector")
    assert vector.temperature is None
    assert len(vector.scale) == len(vector.bias) == 5
    assert vector.after["nll"] < temperature.after["nll"] - 0.1
    assert vector.after["accuracy"] > temperature.after["accuracy"] + 0.05
    # At the maximum the mean probability of each class is its share of the labels.
    shares = torch.bincount(labels) / len(labels)
    torch.testing.assert_close(vector(bent).mean(0), shares.double(), rtol=0, atol=1e-4)


def test_batches_of_any_form() -> None:
    model, batches = Overconfident(), drawn(900, seed=1)
    expected = zoo.calibrate(model, batches).temperature
    maps = [{"x": x, "label": labels} for x, labels in batches]
    assert zoo.calibrate(model, iter(maps)).temperature == expected
    odd = [(labels, {"pixels": x}, labels) for x, labels in batches]
    found = zoo.calibrate(model, odd, forward=lambda batch: {"logits": model(batch[1]["pixels"])})
    assert found.temperature == expected


class Given(nn.Module):
    """Gives what it is given."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


EYE = torch.eye(3)


@pytest.mark.parametrize(
    ("model", "loader", "options", "message"),
    [
        (Given(), [], {}, "the loader gave no batch"),
        (Given(), [EYE], {}, "calibrate: the loader needs labels"),
        (Given(), [(EYE, torch.arange(3))], {}, "no mistake on 3 held-out images"),
        (Given(), [(EYE, torch.tensor([1, 2, 0]))], {}, "say nothing of the labels"),
        (Given(), [(EYE, torch.tensor([0, 1, 3]))], {}, "labels go from 0 to 3"),
        (Given(), [(EYE, torch.rand(3))], {}, "one class, a whole number"),
        (Given(), [(EYE, torch.arange(2))], {}, "one class, a whole number"),
        (Given(), [(EYE.log(), torch.arange(3))], {}, "a logit is not finite"),
        (nn.Softmax(1), [(EYE, torch.arange(3))], {}, "Softmax ends in a softmax"),
        (Given(), [(torch.ones(3, 1), torch.zeros(3).long())], {}, "K > 1"),
        (Given(), [(EYE, torch.arange(3))], {"method": "platt"}, "temperature or vector"),
    ],
)
def test_what_allows_no_calibration_is_one_line(
    model: nn.Module, loader: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(zoo.UserError, match=message):
        zoo.calibrate(model, loader, **options)
