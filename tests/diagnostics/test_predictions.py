from __future__ import annotations

from collections import UserDict
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import zoo


class Head(nn.Module):
    """Dropout, a linear layer, and something at the end."""

    def __init__(self, outputs: int, end: Any = None) -> None:
        super().__init__()
        self.drop, self.linear, self.end = nn.Dropout(0.5), nn.Linear(8, outputs), end

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(self.drop(x))
        return y if self.end is None else self.end(y)


def raw(model: Head, x: torch.Tensor, samples: int) -> torch.Tensor:
    """What a plain loop gives with seed 0."""
    model.train()
    torch.manual_seed(0)
    with torch.no_grad():
        return torch.stack([model(x) for _ in range(samples)]).double()


def bernoulli(p: torch.Tensor) -> torch.Tensor:
    return -(p * p.log() + (1 - p) * (1 - p).log())


@pytest.fixture
def x() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(6, 8)


@pytest.mark.parametrize(
    ("outputs", "end"), [(2, None), (1, None), (3, nn.Softplus()), (1, nn.Flatten(0))]
)
def test_a_regression_has_mean_and_variance_of_its_values(x, outputs, end) -> None:
    model = Head(outputs, end)
    values = raw(model, x, 40)
    result = zoo.mc_dropout(model, x, 40, task="regression", return_samples=True)
    torch.testing.assert_close(result.samples.double(), values, rtol=0, atol=1e-6)
    torch.testing.assert_close(result.mean.double(), values.mean(0), rtol=0, atol=1e-5)
    variance = values.var(0, unbiased=False)
    torch.testing.assert_close(result.variance.double(), variance, rtol=1e-4, atol=1e-7)
    assert result.entropy.isnan().all()
    same = zoo.mc_dropout(model, x, 40, outputs="values")
    assert torch.equal(same.mean, result.mean)


@pytest.mark.parametrize("end", [nn.Softmax(1), lambda y: F.softmax(y, -1), lambda y: y.softmax(1)])
def test_a_softmax_at_the_end_is_not_followed_by_another(x, end) -> None:
    model, plain = Head(4), Head(4, end)
    plain.load_state_dict(model.state_dict())
    expected = zoo.mc_dropout(model, x, 20)
    result = zoo.mc_dropout(plain, x, 20)
    torch.testing.assert_close(result.mean, expected.mean)
    torch.testing.assert_close(result.entropy, expected.entropy)
    with pytest.raises(zoo.UserError, match="ends in a softmax: it gives outputs='probabilities'"):
        zoo.mc_dropout(plain, x, 20, outputs="logits")
    with pytest.raises(zoo.UserError, match="ends in a softmax, which multilabel does not"):
        zoo.mc_dropout(plain, x, 20, task="multilabel")
    members = zoo.ensemble([plain, plain], x)
    torch.testing.assert_close(members.mean, model.eval()(x).softmax(1).detach())


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("end", [None, nn.Sigmoid(), torch.sigmoid, nn.Flatten(0)])
def test_labels_are_independent(x, outputs, end) -> None:
    model = Head(outputs, end)
    values = raw(model, x, 30)
    p = values.sigmoid() if end is None or isinstance(end, nn.Flatten) else values
    result = zoo.mc_dropout(model, x, 30, task="multilabel")
    torch.testing.assert_close(result.mean.double(), p.mean(0), rtol=0, atol=1e-5)
    torch.testing.assert_close(result.entropy.double(), bernoulli(p.mean(0)), rtol=0, atol=1e-5)
    torch.testing.assert_close(
        result.expected_entropy.double(), bernoulli(p).mean(0), rtol=0, atol=1e-5
    )
    if end is not None and not isinstance(end, nn.Flatten):
        with pytest.raises(zoo.UserError, match="ends in a sigmoid: give task="):
            zoo.mc_dropout(model, x, 30)


@pytest.mark.parametrize(
    ("task", "shape", "classes"),
    [("segmentation", (3, 2, 2), 1), ("language", (4, 3), 2)],
)
def test_positions_keep_their_place(x, task, shape, classes) -> None:
    model = Head(12, nn.Unflatten(1, shape))
    p = raw(model, x, 25).softmax(classes + 1)
    result = zoo.mc_dropout(model, x, 25, task=task, return_samples=True)
    torch.testing.assert_close(result.samples.double(), p, rtol=0, atol=1e-6)
    mean = p.mean(0)
    entropy = -(mean * mean.log()).sum(classes)
    torch.testing.assert_close(result.entropy.double(), entropy, rtol=0, atol=1e-5)
    own = -(p * p.log()).sum(classes + 1).mean(0)
    torch.testing.assert_close(result.expected_entropy.double(), own, rtol=0, atol=1e-5)
    with pytest.raises(zoo.UserError, match=r"may be several things.*give task="):
        zoo.mc_dropout(model, x, 25)


def test_what_does_not_fit_is_reported(x) -> None:
    model = Head(3)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"task": "classes"}, "task is 'classes': choose multiclass"),
        ({"outputs": "logit"}, "outputs is 'logit': choose logits"),
        ({"task": "segmentation"}, r"gives \[6, 3\]: segmentation needs \(B, C, H, W\)"),
        ({"task": "language"}, r"language needs \(B, T, V\)"),
        ({"task": "regression", "outputs": "logits"}, "a regression gives values"),
        ({"task": "multiclass", "outputs": "values"}, "gives logits or probabilities"),
        ({"outputs": "probabilities"}, "but the model gives none"),
    ]
    for options, message in cases:
        with pytest.raises(zoo.UserError, match=message):
            zoo.mc_dropout(model, x, 5, **options)
        with pytest.raises(zoo.UserError, match=message):
            zoo.ensemble([model], x, **options)


def test_inputs_in_every_form(x) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop, self.linear = nn.Dropout(0.5), nn.Linear(8, 3)

        def forward(self, a: torch.Tensor, *, b: torch.Tensor) -> torch.Tensor:
            return self.linear(self.drop(a) + b)

    class Encoding(UserDict):  # as a tokenizer gives
        pass

    model = Two()
    expected = zoo.mc_dropout(model, {"a": x, "b": x}, 9).mean
    assert torch.equal(zoo.mc_dropout(model, Encoding(a=x, b=x), 9).mean, expected)
    own = zoo.mc_dropout(model, (x, x), 9, forward=lambda pair: model(pair[0], b=pair[1]))
    assert torch.equal(own.mean, expected)
    plain = zoo.ensemble([model], {"a": x, "b": x}).mean
    own = zoo.ensemble([model], (x, x), forward=lambda each, pair: each(pair[0], b=pair[1]))
    assert torch.equal(own.mean, plain)
    for tool in (lambda: zoo.mc_dropout(model, (x, x), 9), lambda: zoo.ensemble([model], (x, x))):
        with pytest.raises(zoo.UserError, match=r"forward|training mode"):
            tool()
