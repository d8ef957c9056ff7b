"""Dropout and BatchNorm in bottlenecks, and in the wide blocks of Wide ResNets."""

from __future__ import annotations

import math
from statistics import mean
from typing import Any

from torch import Tensor, nn

from zoo.data.digits import Digits
from zoo.networks.initializers import init_he
from zoo.study.claims.base import Claim, Finding, Form, Numbers, larger, signed
from zoo.study.claims.fits import fit_once
from zoo.study.fitting import build
from zoo.study.pictures import WIDTH, draw_points, new_figure
from zoo.study.shift import LOSS, SHIFT, measure_shift

RATE = 0.3  # of Wide ResNets on CIFAR (Zagoruyko and Komodakis 2016, section 3)


CHANNELS, NARROW = 64, 16
# Of a block's convolutions: channels in, channels out, size.
BLOCKS = {
    "bottlenecks": ((CHANNELS, NARROW, 1), (NARROW, NARROW, 3), (NARROW, CHANNELS, 1)),
    "wide blocks": ((CHANNELS, CHANNELS, 3), (CHANNELS, CHANNELS, 3)),
}
NARROW_KIND, WIDE_KIND = BLOCKS
RECALIBRATED = ", recalibrated"  # after an arm's name: its statistics estimated with dropout off


class Block(nn.Module):
    """BatchNorm, ReLU and convolution, two or three times, added to the input.

    Dropout is before the last BatchNorm, where Li et al., CVPR 2019, section 4, put it in all
    networks; of bottlenecks and wide blocks, what differs is the channels there: 16 or 64.
    """

    def __init__(self, kind: str, drop_rate: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after, size in BLOCKS[kind]:
            convolution = nn.Conv2d(before, after, size, padding=size // 2, bias=False)
            layers += [nn.BatchNorm2d(before), nn.ReLU(), convolution]
        layers.insert(-3, nn.Dropout(drop_rate))
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class BlockNet(nn.Module):
    """Four blocks of a kind: (B, 1, 8, 8) → (B, 10)."""

    def __init__(self, kind: str, drop_rate: float) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, CHANNELS, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(*(Block(kind, drop_rate) for _ in range(4)))
        self.norm = nn.BatchNorm2d(CHANNELS)
        self.head = nn.Linear(CHANNELS, 10)
        init_he(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.stem(x))).relu().mean((2, 3)))


def measure(form: Form) -> Numbers:
    epochs = 50 if form.quick else 150  # until what is not regularized has learned its images
    loss: dict[str, list[float]] = {}
    shift: dict[str, list[float]] = {}
    for kind in BLOCKS:
        for rate in (0.0, RATE):
            arm = f"{kind}, dropout {rate:g}"
            shift[arm] = []
            for seed in range(form.seeds):
                # 300 images for training, so that there is something to regularize.
                data = Digits(32, validation_size=1137, shift=1)
                network = build(seed, BlockNet, kind=kind, drop_rate=rate)
                fitted = fit_once(network, data, epochs=epochs, seed=seed)
                loss.setdefault(arm, []).append(fitted.final("val/loss"))
                training = [(data.normalize(x), y) for x, y in data.plain("train", 100)]
                held_out = [(data.normalize(x), y) for x, y in data.plain("validation", 100)]
                found = measure_shift(fitted.network, training, held_out)
                shift[arm].append(abs(math.log(found[SHIFT][0])))
                if rate:
                    loss.setdefault(arm + RECALIBRATED, []).extend(found[LOSS])
    return {"loss": loss, "shift": shift, "epochs": epochs}


def judge_all(numbers: Numbers) -> list[Finding]:
    loss, shift = numbers["loss"], numbers["shift"]
    narrow, wide = (f"{kind}, dropout {RATE:g}" for kind in BLOCKS)
    narrow_alone, wide_alone = (f"{kind}, dropout 0" for kind in BLOCKS)
    return [
        larger(
            "In bottlenecks dropout harms.",
            "validation loss (nats), with dropout less without",
            loss[narrow],
            loss[narrow_alone],
        ),
        larger(
            "In wide blocks it helps.",
            "validation loss (nats), without dropout less with",
            loss[wide_alone],
            loss[wide],
            why=f"Recalibrated, with statistics estimated with dropout off, the loss with dropout "
            f"is {mean(loss[wide + RECALIBRATED]):.3f} nats, and without dropout "
            f"{mean(loss[wide_alone]):.3f}.",
        ),
        larger(
            "The variance shifts more in bottlenecks.",
            "|ln ratio| of the worst BatchNorm, bottlenecks' less the wide blocks'",
            shift[narrow],
            shift[wide],
            why="Straight before BatchNorm a channel's variance grows by p / (1 - p) times "
            "E[x²] / Var[x], in which the width has no part.",
        ),
    ]


def draw(numbers: Numbers) -> Any:
    figure, axes = new_figure(1, 2, WIDTH, 4.6)
    draw_points(
        axes[0, 0],
        numbers["loss"],
        "validation loss (nats), trained on 300 digits",
        f"{numbers['epochs']} epochs: lower is better",
    )
    draw_points(
        axes[0, 1],
        numbers["shift"],
        "|ln (variance, dropout on / off)|",
        "worst BatchNorm: 0 is no shift",
        numbers["loss"],
    )
    return figure


def message(numbers: Numbers) -> str:
    loss = numbers["loss"]

    def change(kind: str, state: str = "") -> str:
        gap = mean(loss[f"{kind}, dropout {RATE:g}{state}"]) - mean(loss[f"{kind}, dropout 0"])
        return signed(gap, 2)

    return (
        f"Dropout of {RATE:g} changes the held-out loss by {change(NARROW_KIND)} nats in "
        f"{NARROW_KIND}, by {change(WIDE_KIND)} in {WIDE_KIND}; recalibrated by "
        f"{change(NARROW_KIND, RECALIBRATED)} and {change(WIDE_KIND, RECALIBRATED)}"
    )


CLAIM = Claim(
    "wide-resnet",
    "Dropout and BatchNorm fight in bottlenecks, and cooperate in Wide ResNets.",
    measure,
    judge_all,
    draw,
    message,
)
