"""Whether a dropout reaches a BatchNorm, where the graph alone cannot tell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.diagnostics.audit import audit
from zoo.study.seed_oracle import changed_by_the_seed


class Given(nn.Module):
    """A module whose forward is given."""

    def __init__(self, forward: Callable[..., Tensor], **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        self.body = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


def flagged(model: nn.Module, x: Tensor) -> set[str]:
    return {f.module for f in audit(model, x, rules=["dropout-before-bn"]).findings}


STATES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "unpacked": lambda h, c: next(iter(h)),
    "unbind": lambda h, c: torch.unbind(c)[0],
    "transposed": lambda h, c: h.transpose(0, 1)[:, 0],
    "viewed": lambda h, c: h.view(2, -1, 8)[:1].squeeze(0),
    "chunk": lambda h, c: c.chunk(2)[0][0],
    "second": lambda h, c: torch.unbind(h)[1],
    "transposed second": lambda h, c: c.transpose(0, 1)[:, 1],
    "mean": lambda h, c: h.mean(0),
}


@pytest.mark.parametrize("which", STATES)
def test_states_of_a_recurrent_layer_before_its_dropout(which: str) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.norm(STATES[which](*self.lstm(x)[1]))

    model = Given(forward, lstm=nn.LSTM(8, 8, 2, dropout=0.5), norm=nn.BatchNorm1d(8))
    x = torch.randn(5, 4, 8)
    expected = {"norm"} if which in ("second", "transposed second", "mean") else set()
    assert changed_by_the_seed(model, x, expected)[0] == expected
    assert flagged(model, x) == expected


# Of data ``a`` that no dropout has touched, and ``d`` that one has.
MIXED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cat and slice": lambda a, d: torch.cat([a, d], 1)[:, :8],
    "cat and chunk": lambda a, d: torch.cat([a, d]).chunk(2)[0],
    "stack and index": lambda a, d: torch.stack([a, d])[0],
    "stack and unbind": lambda a, d: torch.stack([a, d]).unbind(0)[0],
    "cat and split": lambda a, d: torch.cat([d, a], 1).split(8, 1)[1],
    "times nothing": lambda a, d: a + 0 * d,
    "isnan": lambda a, d: a * (1 - d.isnan().float()),
    "where": lambda a, d: torch.where(d.isfinite(), a, d),
    "meshgrid": lambda a, d: torch.meshgrid(a[0], d[0], indexing="xy")[0],
}
REACHED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "other half": lambda a, d: torch.cat([a, d], 1)[:, 8:],
    "other chunk": lambda a, d: torch.cat([a, d]).chunk(2)[1],
    "which is dropped": lambda a, d: a * (d != 0),
    "other of meshgrid": lambda a, d: torch.meshgrid(a[0], d[0], indexing="xy")[1],
    "sum": lambda a, d: a + d,
    "a little": lambda a, d: a + 1e-5 * d,
}


@pytest.mark.parametrize("how", [*MIXED, *REACHED])
def test_what_is_joined_and_parted_again(how: str) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        mixed = (MIXED | REACHED)[how]
        return self.norm(mixed(self.linear(x), F.dropout(x, 0.5, self.training)))

    model = Given(forward, linear=nn.Linear(8, 8, bias=False), norm=nn.BatchNorm1d(8))
    x = torch.randn(6, 8)
    expected = {"norm"} if how in REACHED else set()
    assert changed_by_the_seed(model, x, expected)[0] == expected
    assert flagged(model, x) == expected


@pytest.mark.parametrize("zero", ["branch", "scale", "norm"])
def test_a_branch_that_begins_at_zero_hides_nothing(zero: str) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.norm(x + self.scale(F.dropout(x, 0.1, self.training)))

    scale = nn.Linear(8, 8) if zero == "branch" else nn.Conv1d(8, 8, 1, groups=8)
    if zero == "norm":
        model = nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 8), nn.BatchNorm1d(8))
        nn.init.zeros_(model[2].weight)
        assert flagged(model, torch.randn(6, 8)) == {"2"}
        return
    for parameter in scale.parameters():
        nn.init.zeros_(parameter)
    x = torch.randn(6, 8) if zero == "branch" else torch.randn(6, 8, 3)
    model = Given(forward, scale=scale, norm=nn.BatchNorm1d(8))
    assert flagged(model, x) == {"norm"}
    assert all(bool((parameter == 0).all()) for parameter in scale.parameters())


def test_what_passes_another_norm_only_is_not_reported() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        d = F.dropout(x, 0.5, self.training)
        return self.second(torch.cat([self.first(d), d], 1)[:, :8])

    model = Given(forward, first=nn.BatchNorm1d(8), second=nn.BatchNorm1d(8))
    x = torch.randn(6, 8)
    assert changed_by_the_seed(model, x, {"first"}, replay=True)[0] == {"first"}
    assert flagged(model, x) == {"first"}
