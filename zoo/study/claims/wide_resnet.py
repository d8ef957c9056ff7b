"""Dropout and BatchNorm in bottlenecks, and in Wide ResNets: element-wise in both."""

from __future__ import annotations

from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn

from zoo.data.digits import Digits
from zoo.diagnostics.variance_shift import variance_shift
from zoo.networks.initializers import init_he
from zoo.networks.preact_resnet import PreActResNet
from zoo.study.claims.base import Claim, Finding, Form, Numbers, larger
from zoo.study.claims.fits import fit_once, replace_dropout
from zoo.study.fitting import build
from zoo.study.pictures import WIDTH, draw_points, new_figure

RATE = 0.3  # of Wide ResNets on CIFAR (Zagoruyko and Komodakis 2016, section 3)


class Bottleneck(nn.Module):
    """BatchNorm, ReLU, convolution three times, narrow in the middle; dropout before the last norm.

    Where Li et al., CVPR 2019, section 4, put it.
    """

    def __init__(self, channels: int, drop_rate: float) -> None:
        super().__init__()
        narrow = channels // 4
        self.layers = nn.Sequential(
            *self._convolution(channels, narrow, 1),
            *self._convolution(narrow, narrow, 3),
            nn.Dropout(drop_rate),
            *self._convolution(narrow, channels, 1),
        )

    def _convolution(self, before: int, after: int, size: int) -> list[nn.Module]:
        convolution = nn.Conv2d(before, after, size, padding=size // 2, bias=False)
        return [nn.BatchNorm2d(before), nn.ReLU(), convolution]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class BottleneckNet(nn.Module):
    """Four bottlenecks: (B, 1, 8, 8) → (B, 10)."""

    def __init__(self, drop_rate: float) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 64, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(*(Bottleneck(64, drop_rate) for _ in range(4)))
        self.norm = nn.BatchNorm2d(64)
        self.head = nn.Linear(64, 10)
        init_he(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.stem(x))).relu().mean((2, 3)))


def wide(drop_rate: float) -> nn.Module:
    """A Wide ResNet, 6 times as wide (Zagoruyko and Komodakis 2016), of few channels at first.

    Its dropout is element-wise, as in the paper and as in the bottlenecks.
    """
    network = PreActResNet(in_channels=1, layers=(1, 1), width=8, widen=6, drop_rate=drop_rate)
    return replace_dropout(network, nn.Dropout)


NETWORKS: dict[str, Any] = {"bottlenecks": BottleneckNet, "Wide ResNet": wide}


def measure(form: Form) -> Numbers:
    epochs = 50 if form.quick else 150  # until what is not regularized has learned its images
    # Few images, so that there is something to regularize.
    held_out = 1137
    loss: dict[str, list[float]] = {}
    shift: dict[str, list[float]] = {}
    for name, make in NETWORKS.items():
        for rate in (0.0, RATE):
            arm = f"{name}, dropout {rate:g}"
            loss[arm], shift[arm] = [], []
            for seed in range(form.seeds):
                data = Digits(32, validation_size=held_out, shift=1)
                network = build(seed, make, drop_rate=rate)
                fitted = fit_once(network, data, epochs=epochs, seed=seed)
                loss[arm].append(fitted.final("val/loss"))
                training = [(data.normalize(x), y) for x, y in data.plain("train", 100)]
                layers = variance_shift(fitted.network, training).layers
                ratios = torch.tensor([layer.ratio for layer in layers])
                shift[arm].append(float(ratios.log().abs().nan_to_num().max()))
    return {"loss": loss, "shift": shift, "epochs": epochs}


def judge_all(numbers: Numbers) -> list[Finding]:
    loss, shift = numbers["loss"], numbers["shift"]
    narrow, wide_arm = f"bottlenecks, dropout {RATE:g}", f"Wide ResNet, dropout {RATE:g}"
    return [
        larger(
            "In bottlenecks dropout harms.",
            "validation loss (nats), with dropout less without",
            loss[narrow],
            loss["bottlenecks, dropout 0"],
        ),
        larger(
            "In a Wide ResNet it helps.",
            "validation loss (nats), without dropout less with",
            loss["Wide ResNet, dropout 0"],
            loss[wide_arm],
            why="Dropout makes learning slower (claim drop-rate), and "
            f"{numbers['epochs']} epochs of 300 images may be too few.",
        ),
        larger(
            "The variance shifts more in bottlenecks.",
            "|ln ratio| of the worst BatchNorm, bottlenecks' less the Wide ResNet's",
            shift[narrow],
            shift[wide_arm],
        ),
    ]


def draw(numbers: Numbers) -> Any:
    figure, axes = new_figure(1, 2, WIDTH, 3.8, sharey=True)
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
    )
    return figure


def message(numbers: Numbers) -> str:
    loss = numbers["loss"]

    def change(name: str) -> str:
        gap = mean(loss[f"{name}, dropout {RATE:g}"]) - mean(loss[f"{name}, dropout 0"])
        return f"{gap:+.2f}".replace("-", "−")

    return (
        f"Dropout of {RATE:g} changes the held-out loss by {change('bottlenecks')} nats in "
        f"bottlenecks, by {change('Wide ResNet')} in a Wide ResNet"
    )


CLAIM = Claim(
    "wide-resnet",
    "Dropout and BatchNorm fight in bottlenecks, and cooperate in Wide ResNets.",
    measure,
    judge_all,
    draw,
    message,
)
