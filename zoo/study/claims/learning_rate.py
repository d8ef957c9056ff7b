"""BatchNorm allows larger learning rates: the largest that trains, with it and without.

The network is normalized throughout, as those are of which the documents speak: in ``ConvNet`` a
hidden linear layer has no BatchNorm, and its units die at the rates that kill them without any.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from statistics import mean
from typing import Any

from torch import Tensor, nn

from zoo.data.digits import Digits
from zoo.networks.initializers import init_he
from zoo.study.claims.base import Claim, Finding, Form, Numbers
from zoo.study.fitting import build, train
from zoo.study.pictures import finish, line, new_mosaic, palette
from zoo.study.verdicts import difference, judge
from zoo.tasks.image_classifier import ImageClassifier

# The largest rate is looked for where it is: without BatchNorm lower than with it.
RATES = {
    "without": tuple(0.003125 * 2**n for n in range(8)),
    "BatchNorm": tuple(0.05 * 2**n for n in range(8)),
}
TIMES = (5, 10)  # what the documents say
TRAINS = 0.9  # training accuracy at the end; chance is 0.1
WIDTHS = (1, 16, 32, 32, 32, 32)
BATCH = 64
SMOOTH = 5  # stored losses that a drawn one is the mean of
CLIPPED = (1e-3, 1e3)  # of the losses drawn, in nats


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


class Recorded(ImageClassifier):
    """Keeps the loss of each step, of a run that diverges too: up to the last that is finite."""

    def on_train_start(self) -> None:
        super().on_train_start()
        self.losses: list[Tensor] = []

    def watch(self, step: int, loss: Tensor) -> None:
        self.losses.append(loss.detach().clone())
        super().watch(step, loss)


def measure(form: Form) -> Numbers:
    epochs = 12 if form.quick else 40
    every = 3 if form.quick else 20  # steps between two losses that are stored
    kinds: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for kind, rates in RATES.items():
        by_rate = kinds[kind] = {f"{rate:g}": [] for rate in rates}
        for rate in rates:
            for seed in range(form.seeds):
                network = build(seed, PlainNet, batch_norm=kind == "BatchNorm")
                task = Recorded(
                    network,
                    lr=rate,
                    optimizer="sgd",
                    momentum=0.9,
                    weight_decay=0.0,
                    schedule="constant",
                    warmup=0.0,
                )
                fitted = train(
                    task,
                    Digits(BATCH, shift=0),
                    epochs=epochs,
                    seed=seed,
                    check_val_every_n_epoch=epochs,
                )
                losses = [_finite(float(loss)) for loss in task.losses]
                # A run that diverges ends early, and keeps every step.
                steps = 1 if fitted.diverged else every
                by_rate[f"{rate:g}"].append(
                    {
                        "loss": losses[::steps],
                        "every": steps,
                        "accuracy": fitted.curves.get("train_eval/accuracy", [0.0])[-1],
                        "diverged": fitted.diverged,
                    }
                )
    return {"kinds": kinds, "epochs": epochs}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def trained(run: dict[str, Any]) -> bool:
    return not run["diverged"] and run["accuracy"] >= TRAINS


def largest(by_rate: dict[str, list[dict[str, Any]]], seed: int) -> float:
    """The largest rate at which a seed trains, or half the smallest that was tried."""
    rates = [float(rate) for rate, runs in by_rate.items() if trained(runs[seed])]
    return max(rates, default=min(map(float, by_rate)) / 2)


def ratio(numbers: Numbers) -> tuple[float, float | None]:
    """ln of the largest rate with BatchNorm over that without, and its standard error."""
    kinds = numbers["kinds"]
    seeds = range(len(next(iter(kinds["without"].values()))))
    logs = {
        kind: [math.log(largest(by_rate, seed)) for seed in seeds]
        for kind, by_rate in kinds.items()
    }
    gap, error = difference(logs["BatchNorm"], logs["without"])
    if error is not None:  # a rate is known to a factor of two: uniform in its logarithm
        error = math.hypot(error, math.log(2) * math.sqrt(2 / 12 / len(seeds)))
    return gap, error


def bounds(numbers: Numbers) -> str:
    """What the ratio does not know: seeds that train at no rate, or at the largest tried."""
    said = []
    for kind, by_rate in numbers["kinds"].items():
        label, rates = kind.replace("without", "without BatchNorm"), list(map(float, by_rate))
        seeds = range(len(next(iter(by_rate.values()))))
        found = [largest(by_rate, seed) for seed in seeds]
        if lowest := sum(rate < min(rates) for rate in found):
            said.append(f"{lowest} of {len(found)} seeds {label} train at no rate")
        if highest := sum(rate == max(rates) for rate in found):
            said.append(f"{highest} of {len(found)} seeds {label} train at the largest tried")
    return f" ({'; '.join(said)})" if said else ""


def judge_all(numbers: Numbers) -> list[Finding]:
    gap, error = ratio(numbers)
    low, high = (None, None) if error is None else (gap - 2 * error, gap + 2 * error)
    number = f"largest rate that trains, BatchNorm's over that without{bounds(numbers)}"

    def finding(says: str, room: float, why: str = "") -> Finding:
        return Finding(
            says,
            number,
            math.exp(gap),
            None if low is None else math.exp(low),
            None if high is None else math.exp(high),
            judge(room, error),
            why,
        )

    least, most = TIMES
    deep = "This network is plain and deep, and without BatchNorm trains at small rates alone."
    return [
        finding("BatchNorm allows larger rates.", gap),
        finding(f"They are at least {least} times larger.", gap - math.log(least)),
        finding(f"And at most {most} times.", math.log(most) - gap, deep),
    ]


def draw(numbers: Numbers) -> Any:
    figure, axes = new_mosaic(("aa", "bc"), 8.4, height_ratios=(1, 1.35))
    top = axes["a"]
    for index, (kind, by_rate) in enumerate(numbers["kinds"].items()):
        label = kind if kind == "BatchNorm" else "without BatchNorm"
        rates = [float(rate) for rate in by_rate]
        for seed in range(len(next(iter(by_rate.values())))):
            ends = [runs[seed] for runs in by_rate.values()]
            values = [0.0 if end["diverged"] else end["accuracy"] for end in ends]
            top.plot(rates, values, label=None if seed else label, **line(index, 2))
        axis = axes["bc"[index]]
        drawn = list(by_rate.items())[1::2]
        for place, (rate, runs) in enumerate(drawn):
            color, style = palette(len(drawn))[place], line(place, len(drawn))["linestyle"]
            ended = sum(run["diverged"] for run in runs)
            mark = f", {ended} of {len(runs)} diverge" if ended else ""
            axis.plot([], color=color, linestyle=style, label=f"{float(rate):g}{mark}")
            _draw_runs(axis, runs, color, style)
        axis.set_yscale("log")
        axis.set_ylim(*CLIPPED)
        finish(axis, "step", "training loss (nats)", f"{label}: geometric mean and range")
        axis.legend(loc="upper right", title="learning rate")
    axes["c"].sharey(axes["b"])
    top.set_xscale("log")
    top.xaxis.set_major_formatter("{x:g}")
    top.axhline(TRAINS, color="grey", linestyle=":", label=f"{TRAINS:g}: trained")
    finish(
        top,
        "learning rate (SGD, momentum 0.9)",
        "training accuracy",
        f"after {numbers['epochs']} epochs: each seed a line, 0 where it diverged",
    )
    top.legend(loc="lower left")
    return figure


def _draw_runs(axis: Any, runs: list[dict[str, Any]], color: str, style: str) -> None:
    """The runs of a rate: their mean and range; one that diverges by itself, up to a cross.

    Means are geometric, over seeds and SMOOTH stored losses; all is clipped at the panel's edge.
    """
    whole = [_smooth(_clipped(run)) for run in runs if not run["diverged"]]
    if whole:
        columns = list(zip(*whole, strict=True))
        steps = [max(run["every"] for run in runs) * (i + SMOOTH // 2) for i in range(len(columns))]
        axis.plot(steps, [_geometric(column) for column in columns], color=color, linestyle=style)
        low, high = [min(column) for column in columns], [max(column) for column in columns]
        axis.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0)
    for run in runs:
        if run["diverged"]:
            points = _clipped(run) or [CLIPPED[1]]
            axis.plot(range(len(points)), points, color=color, linestyle=style)
            axis.plot(len(points) - 1, points[-1], "X", color=color, clip_on=False)


def _clipped(run: dict[str, Any]) -> list[float]:
    return [min(max(v, CLIPPED[0]), CLIPPED[1]) for v in run["loss"] if v is not None]


def _geometric(values: Sequence[float]) -> float:
    return math.exp(mean(math.log(value) for value in values))


def _smooth(values: list[float]) -> list[float]:
    return [_geometric(values[i : i + SMOOTH]) for i in range(len(values) - SMOOTH + 1)]


def message(numbers: Numbers) -> str:
    kinds = numbers["kinds"]
    seeds = range(len(next(iter(kinds["without"].values()))))
    rates = {
        kind: math.exp(mean(math.log(largest(by_rate, seed)) for seed in seeds))
        for kind, by_rate in kinds.items()
    }
    times = math.exp(ratio(numbers)[0])
    return (
        f"With BatchNorm the network trains at up to {times:.2g} times the learning rate: "
        f"{rates['BatchNorm']:.2g} against {rates['without']:.2g}"
    )


CLAIM = Claim(
    "learning-rate",
    "BatchNorm allows learning rates 5 to 10 times higher.",
    measure,
    judge_all,
    draw,
    message,
    bars="Bands: from the least to the most over seeds; losses are drawn within 0.001 and 1000.",
)
