"""MC dropout of models that go another way for other inputs: against a plain loop."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import zoo
from zoo.errors import UserError


class Ways(nn.Module):
    """A rare dropout of 0.5, on the way that ``choose`` names."""

    def __init__(self, choose: str) -> None:
        super().__init__()
        self.choose = choose
        self.stem, self.head = nn.Linear(8, 8), nn.Linear(8, 4)
        self.always, self.rare = nn.Dropout(0.1), nn.Dropout(0.5)

    def forward(self, x: Tensor, deep: bool = False) -> Tensor:
        y = self.always(self.stem(x))
        if self.choose == "argument":
            return self.head(self.rare(y) if deep else y)
        if self.choose == "length":
            return self.head((self.rare(y) if x.shape[1] > 2 else y).mean(1))
        chosen = x[:, 0] > 0  # the rows' own values
        return self.head(torch.where(chosen[:, None], self.rare(y), y) if chosen.any() else y)


def loop(model: nn.Module, run: Callable[[], Tensor], count: int) -> Tensor:
    """The variance of probabilities over plain forwards with every nn.Dropout on."""
    for module in model.eval().modules():
        module.training = isinstance(module, nn.Dropout)
    with torch.no_grad():
        samples = torch.stack([run().softmax(1) for _ in range(count)])
    model.eval()
    return samples.var(0, unbiased=False)


def check(found: Tensor, expected: Tensor) -> None:
    # Of 1,500 samples each: one ratio of sums of variances is within some per cent of 1, and a
    # dropout that is missed leaves a tenth.
    assert 0.85 < float(found.sum() / expected.sum()) < 1.18


def test_what_was_found_for_one_argument_is_not_taken_for_another() -> None:
    torch.manual_seed(0)
    model, x = Ways("argument"), torch.randn(6, 8)
    zoo.mc_dropout(model, x, 5)
    expected = loop(model, lambda: model(x, True), 1500)
    check(zoo.mc_dropout(model, (x, True), 1500).variance, expected)
    found = zoo.mc_dropout(model, x, 1500, forward=lambda x: model(x, deep=True))
    check(found.variance, expected)


def test_what_was_found_for_one_length_is_not_taken_for_another() -> None:
    torch.manual_seed(0)
    model, x = Ways("length"), torch.randn(6, 3, 8)
    zoo.mc_dropout(model, x[:, :2], 5)
    check(zoo.mc_dropout(model, x, 1500).variance, loop(model, lambda: model(x), 1500))


@pytest.mark.parametrize("rows", [None, 4])
def test_one_row_does_not_speak_for_the_others(rows: int | None) -> None:
    torch.manual_seed(0)
    model, x = Ways("values"), torch.randn(8, 8)
    x[:, 0] = torch.tensor([-1.0] * 5 + [1.0] * 3)
    expected = loop(model, lambda: model(x), 1500)[5:]
    check(zoo.mc_dropout(model, x, 1500, batch_size=rows).variance[5:], expected)


def test_ways_that_chance_takes_are_named() -> None:
    class Chance(Ways):
        def forward(self, x: Tensor, deep: bool = False) -> Tensor:
            y = self.always(self.stem(x))
            if self.training and torch.rand([]) < 0.3:
                y = self.rare(y)
            return self.head(y)

    with pytest.warns(UserWarning, match="random numbers choose the way through Chance"):
        zoo.mc_dropout(Chance(""), torch.randn(4, 8), 3)


@pytest.mark.parametrize(
    "end",
    [
        lambda z: z.softmax(1).clamp(1e-6, 1 - 1e-6),
        lambda z: z.exp() / z.exp().sum(1, keepdim=True),
        lambda z: 1 / (1 + (-z).exp()),
    ],
)
def test_numbers_that_look_like_probabilities_must_be_named(
    end: Callable[[Tensor], Tensor],
) -> None:
    class Ends(Ways):
        def forward(self, x: Tensor, deep: bool = False) -> Tensor:
            return end(super().forward(x))

    with pytest.raises(UserError, match="all lie between 0 and 1"):
        zoo.mc_dropout(Ends("argument"), torch.randn(6, 8), 3)


def test_two_outputs_must_be_named_unless_the_model_says_that_it_has_two_classes() -> None:
    model: nn.Module = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 2))
    x = torch.randn(6, 8)
    with pytest.raises(UserError, match="logits of two classes or two values"):
        zoo.mc_dropout(model, x, 3)
    values = zoo.mc_dropout(model, x, 3, task="regression").mean
    assert not torch.allclose(values.sum(1), torch.ones(6))
    model.num_classes = 2  # type: ignore[assignment]
    torch.testing.assert_close(zoo.mc_dropout(model, x, 3).mean.sum(1), torch.ones(6))
