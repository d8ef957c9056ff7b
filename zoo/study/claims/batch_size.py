"""BatchNorm's noise and its dependence on the batch; GroupNorm and LayerNorm have neither."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn

from zoo.data.digits import Digits
from zoo.networks.initializers import init_he
from zoo.study.claims.base import Claim, Finding, Form, Numbers, exactly, interval, larger
from zoo.study.fitting import build, fit
from zoo.study.pictures import COLORS, MARKERS, STYLES, finish, new_figure

SIZES = (2, 8, 32, 128, 256)
DRAWS = 60  # of the other images in a batch
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "BatchNorm": nn.BatchNorm2d,
    "GroupNorm": lambda channels: nn.GroupNorm(4, channels),
    "LayerNorm": lambda channels: nn.GroupNorm(1, channels),
}


class SmallNet(nn.Module):
    """Two blocks of convolution, norm and ReLU: (B, 1, 8, 8) → (B, 10)."""

    def __init__(self, norm: str) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((1, 16), (16, 32)):
            layers += [nn.Conv2d(before, after, 3, padding=1), NORMS[norm](after), nn.ReLU()]
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.head = nn.Linear(128, 10)
        init_he(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def noise(network: nn.Module, images: Tensor, size: int, seed: int) -> float:
    """How much an image's features vary with what else is in its batch, relative to them."""
    generator = torch.Generator().manual_seed(seed)
    network = network.train()
    features = []
    with torch.no_grad():
        for _ in range(DRAWS):
            others = torch.randint(1, len(images), (size - 1,), generator=generator)
            batch = torch.cat([images[:1], images[others]])
            features.append(network.get_submodule("features")(batch)[0])
    stacked = torch.stack(features)
    return float(stacked.std(0).mean() / stacked.mean(0).abs().mean())


def refuses_one_value() -> bool:
    """Whether BatchNorm refuses a batch that leaves it one value a channel."""
    try:
        nn.BatchNorm1d(4)(torch.ones(1, 4))
    except ValueError:
        return True
    return False


def measure(form: Form) -> Numbers:
    data = Digits(shift=0)
    images = data.normalize(next(data.plain("train", 512))[0])
    noises = {
        name: {
            str(size): [
                noise(build(seed, SmallNet, norm=name), images, size, seed)
                for seed in range(form.seeds)
            ]
            for size in SIZES
        }
        for name in NORMS
    }
    loss: dict[str, dict[str, list[float]]] = {name: {} for name in NORMS}
    gaps: dict[str, dict[str, list[float]]] = {name: {} for name in NORMS}
    # As many images for every size; a rate that grows with the root of the size, as Adam's does.
    epochs = 2 if form.quick else 20
    for name in NORMS:
        for size in SIZES:
            runs = []
            for seed in range(form.seeds):
                network = build(seed, SmallNet, norm=name)
                rate = 2e-3 * math.sqrt(size / 32)
                runs.append(fit(network, Digits(size, shift=0), epochs=epochs, seed=seed, lr=rate))
            loss[name][str(size)] = [run.final("val/loss") for run in runs]
            gaps[name][str(size)] = [
                run.final("val/loss") - run.final("train_eval/loss") for run in runs
            ]
    return {
        "noise": noises,
        "loss": loss,
        "gap": gaps,
        "refuses": refuses_one_value(),
        "epochs": epochs,
    }


def spread(by_size: dict[str, list[float]], seed: int) -> float:
    """The largest over the least validation loss over batch sizes, in the logarithm."""
    values = [losses[seed] for losses in by_size.values()]
    return math.log(max(values) / min(values))


def judge_all(numbers: Numbers) -> list[Finding]:
    noises, losses = numbers["noise"], numbers["loss"]
    others = [values for n in ("GroupNorm", "LayerNorm") for values in noises[n].values()]
    independent = max(map(max, others))
    seeds = range(len(losses["BatchNorm"]["2"]))
    other = [
        mean(spread(losses[name], seed) for name in ("GroupNorm", "LayerNorm")) for seed in seeds
    ]
    return [
        larger(
            "BatchNorm's noise is less with larger batches.",
            "relative noise of an image's features, batch of 2 less batch of 256",
            noises["BatchNorm"]["2"],
            noises["BatchNorm"]["256"],
        ),
        exactly(
            "GroupNorm and LayerNorm do not see the batch.",
            "largest relative noise of theirs",
            independent,
            independent < 1e-5,
        ),
        exactly(
            "BatchNorm fails at one value a channel.",
            "1 where torch refuses it",
            float(numbers["refuses"]),
            numbers["refuses"],
        ),
        larger(
            "Its validation loss depends on the batch size more than theirs.",
            "ln of largest over least loss from 2 to 256, BatchNorm's less the others'",
            [spread(losses["BatchNorm"], seed) for seed in seeds],
            other,
            why=f"In {numbers['epochs']} epochs a large batch takes few steps, which raises the "
            "loss with every norm and hides the rest.",
        ),
    ]


def draw(numbers: Numbers) -> Any:
    figure, axes = new_figure(1, 3, 15, 4.5)
    titles = (
        ("noise", "relative noise of an image's features", "noise, before training"),
        ("loss", "validation loss (nats)", f"after {numbers['epochs']} epochs on digits"),
        ("gap", "validation − training loss (nats)", "gap"),
    )
    for axis, (kind, unit, title) in zip(axes.flat, titles, strict=True):
        for index, (name, by_size) in enumerate(numbers[kind].items()):
            found = [interval(values) for values in by_size.values()]
            sizes = [int(size) for size in by_size]
            style = {"color": COLORS[index + 1], "marker": MARKERS[index]}
            middle = [m for m, _, _ in found]
            axis.plot(sizes, middle, label=name, linestyle=STYLES[index], **style)
            low, high = [low for _, low, _ in found], [high for _, _, high in found]
            axis.fill_between(sizes, low, high, color=COLORS[index + 1], alpha=0.2, linewidth=0)
        axis.set_xscale("log", base=2)
        axis.set_xticks(SIZES, [str(size) for size in SIZES])
        finish(axis, "batch size", unit, title)
    axes[0, 0].legend()
    return figure


CLAIM = Claim(
    "batch-size",
    "BatchNorm's noise regularizes, less with larger batches; it fails at one value a channel. "
    "GroupNorm and LayerNorm do not depend on the batch size (2 to 256).",
    measure,
    judge_all,
    draw,
)
