"""BatchNorm allows larger learning rates: the largest that trains, with it and without.

The network is normalized throughout, as those are of which the documents speak: in ``ConvNet`` a
hidden linear layer has no BatchNorm, and its units die at the rates that kill them without any.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

from torch import Tensor, nn

from zoo.data.digits import Digits
from zoo.networks.initializers import init_he
from zoo.study.claims.base import Claim, Finding, Form, Numbers
from zoo.study.fitting import build, fit
from zoo.study.pictures import COLORS, STYLES, finish, new_figure
from zoo.study.verdicts import difference, judge

RATES = tuple(0.025 * 2**n for n in range(11))
TIMES = 5  # the least of what the documents say, 5 to 10
TRAINS = 0.9  # training accuracy at the end; chance is 0.1
WIDTHS = (1, 16, 32, 32, 32, 32)


class PlainNet(nn.Module):
    """Five times convolution, (BatchNorm), ReLU, and a linear layer: (B, 1, 8, 8) → (B, 10)."""

    def __init__(self, batch_norm: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(WIDTHS):
            layers.append(nn.Conv2d(before, after, 3, padding=1, bias=not batch_norm))
            layers += [nn.BatchNorm2d(after)] if batch_norm else []
            layers.append(nn.ReLU())
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.head = nn.Linear(4 * WIDTHS[-1], 10)
        init_he(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def measure(form: Form) -> Numbers:
    epochs = 12 if form.quick else 30
    kinds: dict[str, dict[str, list[dict[str, Any]]]] = {"without": {}, "BatchNorm": {}}
    for kind, by_rate in kinds.items():
        for rate in RATES:
            by_rate[str(rate)] = []
            for seed in range(form.seeds):
                network = build(seed, PlainNet, batch_norm=kind == "BatchNorm")
                fitted = fit(
                    network,
                    Digits(shift=0),
                    epochs=epochs,
                    seed=seed,
                    lr=rate,
                    optimizer="sgd",
                    momentum=0.9,
                )
                curves = fitted.curves
                by_rate[str(rate)].append(
                    {
                        "loss": [_json(v) for v in curves.get("train_eval/loss", [])],
                        "accuracy": curves.get("train_eval/accuracy", [0.0])[-1],
                        "diverged": fitted.diverged,
                    }
                )
    return {"kinds": kinds, "epochs": epochs}


def _json(value: float) -> float | None:
    return value if math.isfinite(value) else None


def largest(by_rate: dict[str, list[dict[str, Any]]], seed: int) -> float:
    """The largest rate at which a seed trains, or half the smallest that was tried."""
    trained = [
        float(rate)
        for rate, runs in by_rate.items()
        if not runs[seed]["diverged"] and runs[seed]["accuracy"] >= TRAINS
    ]
    return max(trained, default=RATES[0] / 2)


def judge_all(numbers: Numbers) -> list[Finding]:
    kinds = numbers["kinds"]
    seeds = range(len(next(iter(kinds["without"].values()))))
    logs = {
        kind: [math.log(largest(by_rate, seed)) for seed in seeds]
        for kind, by_rate in kinds.items()
    }
    gap, error = difference(logs["BatchNorm"], logs["without"])
    error = error or 0.0
    low, high = math.exp(gap - 2 * error), math.exp(gap + 2 * error)
    number = "largest rate that trains, BatchNorm's over that without"
    value = math.exp(gap)
    return [
        Finding("BatchNorm allows larger rates.", number, value, low, high, judge(gap, error)),
        Finding(
            f"They are at least {TIMES} times larger.",
            number,
            value,
            low,
            high,
            judge(gap - math.log(TIMES), error),
        ),
    ]


def draw(numbers: Numbers) -> Any:
    figure, axes = new_figure(1, 3, 15, 4.5)
    for index, (kind, by_rate) in enumerate(numbers["kinds"].items()):
        color, label = COLORS[2 - index], kind if kind == "BatchNorm" else "without BatchNorm"
        rates = [float(rate) for rate in by_rate]
        for seed in range(len(next(iter(by_rate.values())))):
            ends = [runs[seed] for runs in by_rate.values()]
            values = [0.0 if end["diverged"] else end["accuracy"] for end in ends]
            axes[0, 0].plot(
                rates,
                values,
                color=color,
                marker="os"[index],
                linestyle=STYLES[index],
                label=label if seed == 0 else None,
            )
        axis = axes[0, index + 1]
        for number, (rate, runs) in enumerate(by_rate.items()):
            if number % 2:
                continue
            points = [math.nan if v is None else v for v in runs[0]["loss"]]
            mark = " diverged" if runs[0]["diverged"] else ""
            axis.plot(
                range(1, len(points) + 1),
                points,
                marker="x" if mark else ".",
                color=COLORS[number // 2 % len(COLORS)],
                linestyle=STYLES[number // 2 % len(STYLES)],
                label=f"{float(rate):g}{mark}",
            )
        axis.set_yscale("log")
        finish(axis, "epoch", "training loss (nats)", f"{label}, seed 0")
        axis.legend(fontsize=8, title="learning rate")
    axes[0, 0].set_xscale("log")
    finish(
        axes[0, 0],
        "learning rate (SGD, momentum 0.9)",
        f"training accuracy after {numbers['epochs']} epochs",
        "each seed a line; 0 where it diverged",
    )
    axes[0, 0].axhline(TRAINS, color="grey", linestyle=":")
    axes[0, 0].legend(fontsize=8)
    return figure


CLAIM = Claim(
    "learning-rate",
    "BatchNorm allows learning rates 5 to 10 times higher.",
    measure,
    judge_all,
    draw,
)
