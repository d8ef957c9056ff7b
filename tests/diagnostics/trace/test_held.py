"""What is found in plain objects, closures and globals, and what comes of it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import zoo
from zoo.diagnostics.trace.held import held_by
from zoo.diagnostics.trace.snapshot import untouched

GLOBAL = torch.Generator()
GLOBAL_NUMPY = np.random.default_rng(0)


class OfTheClass:
    generator = torch.Generator()

    def draw(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator)


class Nested:
    def __init__(self) -> None:
        self.kept = {"a": [torch.Generator()]}

    def draw(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.kept["a"][0])


class Slots:
    __slots__ = ("generator",)

    def __init__(self) -> None:
        self.generator = np.random.default_rng(0)

    def draw(self, *shape: int) -> Tensor:
        return torch.from_numpy(self.generator.random(shape, dtype=np.float32))


def closure() -> Callable[..., Tensor]:
    generator = torch.Generator()
    return lambda *shape: torch.rand(shape, generator=generator)


def partial() -> Callable[..., Tensor]:
    return functools.partial(torch.rand, generator=torch.Generator())


def from_global(*shape: int) -> Tensor:
    return torch.rand(shape, generator=GLOBAL)


def from_global_numpy(*shape: int) -> Tensor:
    return torch.from_numpy(GLOBAL_NUMPY.random(shape, dtype=np.float32))


DRAWS: dict[str, Callable[[], Callable[..., Tensor]]] = {
    "class": lambda: OfTheClass().draw,
    "nested": lambda: Nested().draw,
    "slots": lambda: Slots().draw,
    "closure": closure,
    "partial": partial,
    "global": lambda: from_global,
    "global of numpy": lambda: from_global_numpy,
}


class Masked(nn.Module):
    def __init__(self, draw: Callable[..., Tensor]) -> None:
        super().__init__()
        self.head, self.draw = nn.Linear(8, 3), draw

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = x * (self.draw(*x.shape) < 0.5)
        return self.head(x)


@pytest.mark.parametrize("where", DRAWS)
def test_a_seed_gives_the_same_samples_wherever_the_generator_lies(where: str) -> None:
    model, x = Masked(DRAWS[where]()), torch.randn(4, 8)
    first = zoo.mc_dropout(model.eval(), x, 12, seed=1)
    model.train()(x)
    second = zoo.mc_dropout(model.eval(), x, 12, seed=1)
    assert torch.equal(first.mean, second.mean)
    assert not torch.equal(first.mean, zoo.mc_dropout(model, x, 12, seed=2).mean)
    with untouched(model):
        inside = model.draw(3)
    assert torch.equal(model.draw(3), inside)  # it goes on as if nobody had drawn


def test_paths_of_what_is_held() -> None:
    class Plain:
        def __init__(self) -> None:
            self.values = [torch.zeros(1), {"b": torch.zeros(2)}]
            self.back = self

    model: Any = nn.Sequential(nn.Linear(2, 2))
    model[0].o = Plain()
    model.__dict__["hidden"] = nn.BatchNorm1d(2)
    found = {path: one for path, one in held_by(model) if isinstance(one, Tensor | nn.Module)}
    assert found["0.o.values.0"] is model[0].o.values[0]
    assert found["0.o.values.1.b"] is model[0].o.values[1]["b"]
    assert found["hidden"] is model.hidden


def test_what_a_forward_changes_in_plain_objects_and_hidden_modules_comes_back() -> None:
    class Counter:
        def __init__(self) -> None:
            self.calls, self.total = 0, torch.zeros(2)

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.counter = Counter()
            self.__dict__["norm"] = nn.BatchNorm1d(2)

        def forward(self, x: Tensor) -> Tensor:
            self.counter.calls += 1
            self.counter.total += x.sum(0)
            return self.norm(x)

    model = Counting()
    with untouched(model):
        model(torch.randn(4, 2))
        assert model.counter.calls == 1
        assert model.counter.total.any()
        assert model.norm.running_mean.any()
    assert model.counter.calls == 0
    assert not model.counter.total.any()
    assert not model.norm.running_mean.any()
