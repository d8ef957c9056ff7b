"""Inverted dropout keeps the expectation; what follows it may not."""

from __future__ import annotations

from collections.abc import Callable
from statistics import mean
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.core.text import counted
from zoo.study.claims.base import Claim, Finding, Form, Numbers, exactly, within
from zoo.study.pictures import WIDTH, draw_over, finish, line, new_figure

RATES = (0.1, 0.3, 0.5, 0.8)
RATE = 0.5  # of what stands before an activation
TOLERANCE = 0.01  # "kept": the mean is off by less than a hundredth of the activation
FUNCTIONS = {"ReLU": torch.relu, "sigmoid": torch.sigmoid, "tanh": torch.tanh}


def measure(form: Form) -> Numbers:
    masks = 20_000 if form.quick else 100_000
    inputs = torch.linspace(-4, 4, 41, dtype=torch.float64)
    kept: dict[str, list[float]] = {str(rate): [] for rate in RATES}
    curves: dict[str, list[list[float]]] = {name: [] for name in FUNCTIONS}
    slopes: dict[str, list[float]] = {name: [] for name in FUNCTIONS}
    same: list[float] = []
    for seed in range(form.draws):
        torch.manual_seed(seed)
        for rate in RATES:
            kept[str(rate)].append(_slope(_mean(inputs, rate, masks), inputs))
        for name, function in FUNCTIONS.items():
            before, plain = _mean(inputs, RATE, masks, function), function(inputs)
            curves[name].append(before.tolist())
            slopes[name].append(_slope(before, plain))
        mask = F.dropout(torch.ones(10_000, dtype=torch.float64), RATE)
        drawn = torch.randn(10_000, dtype=torch.float64)
        same.append(float((torch.relu(drawn * mask) - torch.relu(drawn) * mask).abs().max()))
    return {
        "inputs": inputs.tolist(),
        "kept": kept,
        "relu": same,
        "dropped": {name: float(f(torch.zeros(1))) for name, f in FUNCTIONS.items()},
        "curves": {
            name: {
                "without": function(inputs).tolist(),
                "before": [mean(column) for column in zip(*curves[name], strict=True)],
                "seeds": curves[name],
            }
            for name, function in FUNCTIONS.items()
        },
        "slopes": slopes,
    }


def _mean(
    inputs: Tensor, rate: float, masks: int, function: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """The mean over many masks of dropout at a rate, and of what follows it, for each input."""
    dropped = F.dropout(inputs.expand(masks, -1), rate)
    return (dropped if function is None else function(dropped)).mean(0)


def _slope(found: Tensor, plain: Tensor) -> float:
    """What found is of plain, by least squares over all inputs."""
    return float((found * plain).sum() / plain.square().sum())


def judge_all(numbers: Numbers) -> list[Finding]:
    worst = max(numbers["kept"], key=lambda rate: abs(mean(numbers["kept"][rate]) - 1))
    kept, half = numbers["kept"][worst], numbers["dropped"]["sigmoid"]
    seeds = counted(len(kept), "seed")
    distorted = [
        within(
            f"Before {name}, the mean is distorted.",
            f"mean over masks / output without dropout, at rate {RATE}, over {seeds}",
            numbers["slopes"][name],
            [abs(1 - value) - TOLERANCE for value in numbers["slopes"][name]],
        )
        for name in ("sigmoid", "tanh")
    ]
    return [
        within(
            "The expectation is kept.",
            f"mean over masks / activation, at the worst rate, {worst}, over {seeds}",
            kept,
            [TOLERANCE - abs(value - 1) for value in kept],
        ),
        exactly(
            "Before ReLU and after it, dropout is the same.",
            "largest difference of an activation, one mask for both: ReLU(m x) = m ReLU(x), m ≥ 0",
            max(numbers["relu"]),
            max(numbers["relu"]) == 0,
        ),
        exactly(
            "Before a sigmoid, a dropped unit is 0.5 and not 0.",
            "output of a dropped unit",
            half,
            half == 0.5,
        ),
        *distorted,
    ]


def draw(numbers: Numbers) -> Any:
    figure, axes = new_figure(1, 3, WIDTH, 3.9)
    for axis, (name, curve) in zip(axes.flat, numbers["curves"].items(), strict=True):
        bare = {**line(0, 2), "marker": None}
        axis.plot(numbers["inputs"], curve["without"], label="no dropout", **bare)
        seeds = list(zip(*curve["seeds"], strict=True))
        style = {**line(1, 2), "markevery": 5, "label": f"dropout {RATE} before it"}
        draw_over(axis, numbers["inputs"], seeds, **style)
        finish(axis, "input", "output, mean over masks", name)
    axes[0, 0].legend(loc="upper left")
    axes[0, 0].set_ylim(-0.3, 6.5)  # room for the legend
    return figure


def message(numbers: Numbers) -> str:
    slopes = {name: mean(values) for name, values in numbers["slopes"].items()}
    return (
        f"Dropout before ReLU keeps {slopes['ReLU']:.0%} of the mean output, before tanh "
        f"{slopes['tanh']:.0%}; before a sigmoid a dropped unit gives "
        f"{numbers['dropped']['sigmoid']:g}"
    )


CLAIM = Claim(
    "inverted-dropout",
    "Scaling by 1 / (1 - p) in training keeps the expectation; dropout before and after ReLU is "
    "equal, and is distorted by sigmoid and tanh.",
    measure,
    judge_all,
    draw,
    message,
)
