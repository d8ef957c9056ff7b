"""Inverted dropout keeps the expectation; what follows it may not."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.study.claims.base import Claim, Finding, Form, Numbers, exactly, interval
from zoo.study.pictures import COLORS, STYLES, finish, new_figure
from zoo.study.verdicts import judge

RATES = (0.1, 0.3, 0.5, 0.8)
TOLERANCE = 0.01  # "kept": the mean is off by less than a hundredth of the activation
FUNCTIONS = {"ReLU": torch.relu, "sigmoid": torch.sigmoid, "tanh": torch.tanh}


def measure(form: Form) -> Numbers:
    masks = 20_000 if form.quick else 100_000
    inputs = torch.linspace(-4, 4, 161, dtype=torch.float64)
    kept: dict[str, list[float]] = {}
    for rate in RATES:
        kept[str(rate)] = []
        for seed in range(form.seeds):
            torch.manual_seed(seed)
            found = _mean(lambda x, rate=rate: F.dropout(x, rate), inputs, masks)
            kept[str(rate)].append(float((found * inputs).sum() / inputs.square().sum()))
    torch.manual_seed(0)
    mask = F.dropout(torch.ones(10_000, dtype=torch.float64), 0.5)
    drawn = torch.randn(10_000, dtype=torch.float64)
    same = float((torch.relu(drawn * mask) - torch.relu(drawn) * mask).abs().max())
    curves = {}
    for name, function in FUNCTIONS.items():
        before = _mean(lambda x, f=function: f(F.dropout(x, 0.5)), inputs, masks)
        curves[name] = {"without": function(inputs).tolist(), "before": before.tolist()}
    slopes: list[float] = []
    for seed in range(form.seeds):
        torch.manual_seed(seed)
        before = _mean(lambda x: torch.tanh(F.dropout(x, 0.5)), inputs, masks)
        exact = torch.tanh(inputs)
        slopes.append(float((before * exact).sum() / exact.square().sum()))
    return {
        "inputs": inputs.tolist(),
        "kept": kept,
        "relu": same,
        "dropped": {name: float(f(torch.zeros(1))) for name, f in FUNCTIONS.items()},
        "curves": curves,
        "tanh": slopes,
    }


def _mean(function: Any, inputs: Tensor, masks: int) -> Tensor:
    """The mean of a random function over many draws, for each input."""
    return function(inputs.expand(masks, -1)).mean(0)


def judge_all(numbers: Numbers) -> list[Finding]:
    findings = []
    worst = max(numbers["kept"], key=lambda rate: abs(interval(numbers["kept"][rate])[0] - 1))
    value, low, high = interval(numbers["kept"][worst])
    findings.append(
        Finding(
            "The expectation is kept.",
            f"mean over masks / activation, at the worst rate, {worst}",
            value,
            low,
            high,
            judge(TOLERANCE - abs(value - 1), (high - low) / 4),
        )
    )
    same = numbers["relu"]
    findings.append(
        exactly(
            "Before ReLU and after it, dropout is the same.",
            "largest difference of an activation, one mask for both",
            same,
            same == 0,
        )
    )
    half = numbers["dropped"]["sigmoid"]
    findings.append(
        exactly(
            "Before a sigmoid, a dropped unit is 0.5 and not 0.",
            "output of a dropped unit",
            half,
            half == 0.5,
        )
    )
    value, low, high = interval(numbers["tanh"])
    findings.append(
        Finding(
            "Before tanh, the scaling by 1 / (1 - p) is distorted.",
            "mean over masks / activation, at rate 0.5",
            value,
            low,
            high,
            judge(abs(1 - value) - TOLERANCE, (high - low) / 4),
        )
    )
    return findings


def draw(numbers: Numbers) -> Any:
    figure, axes = new_figure(1, 3, 13, 4.3)
    for axis, (name, curve) in zip(axes.flat, numbers["curves"].items(), strict=True):
        axis.plot(numbers["inputs"], curve["without"], color=COLORS[0], label="no dropout")
        axis.plot(
            numbers["inputs"],
            curve["before"],
            color=COLORS[2],
            linestyle=STYLES[1],
            label="dropout 0.5 before it",
        )
        finish(axis, "input", f"output of {name}, mean over masks", name)
        axis.legend(loc="upper left")
    return figure


CLAIM = Claim(
    "inverted-dropout",
    "Scaling by 1 / (1 - p) in training keeps the expectation; dropout before and after ReLU is "
    "equal, and is distorted by sigmoid and tanh.",
    measure,
    judge_all,
    draw,
)
