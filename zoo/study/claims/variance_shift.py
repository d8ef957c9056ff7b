"""Dropout before BatchNorm shifts the variance that evaluation normalizes by; and what helps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn

from zoo.data.digits import Digits
from zoo.diagnostics.recalibrate import recalibrate
from zoo.diagnostics.variance_shift import NOTHING, variance_shift
from zoo.networks.initializers import init_he
from zoo.networks.layers import GaussianDropout
from zoo.study.claims.base import Claim, Finding, Form, Numbers, exactly, interval, within
from zoo.study.claims.fits import fit_once
from zoo.study.fitting import build
from zoo.study.pictures import WIDTH, draw_points, finish, new_figure, palette
from zoo.study.shift import farthest

RATE = 0.5
UNIFORM = 0.1
# How many times the variance of uniform noise dropout's factors have: 300.
SMALLER = RATE / (1 - RATE) / (UNIFORM**2 / 3)


class UniformNoise(nn.Module):
    """Multiplies by 1 + r, r uniform in ±0.1 (Li et al., CVPR 2019, section 5.2)."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * (1 + torch.empty_like(x).uniform_(-UNIFORM, UNIFORM))


NOISE: dict[str, Callable[[], nn.Module]] = {
    "element-wise": lambda: nn.Dropout(RATE),
    "Dropout2d": lambda: nn.Dropout2d(RATE),
    "Gaussian": lambda: GaussianDropout(RATE),
    "uniform": UniformNoise,
}
# Name → (noise, where it stands, norm).
ARMS: dict[str, tuple[str, str, str]] = {
    "before BatchNorm": ("element-wise", "before", "batch"),
    "between blocks": ("element-wise", "between", "batch"),
    "after the last": ("element-wise", "after", "batch"),
    "Dropout2d before": ("Dropout2d", "before", "batch"),
    "Gaussian before": ("Gaussian", "before", "batch"),
    "uniform ± 0.1 before": ("uniform", "before", "batch"),
    "LayerNorm, before": ("element-wise", "before", "layer"),
}


AT_FAULT, RECALIBRATED = "before BatchNorm", "before, recalibrated"
# Arm → what the remedy is called.
REMEDIES = {
    "after the last": "Dropout after the last BatchNorm",
    RECALIBRATED: "Recalibration",
    "Dropout2d before": "Dropout2d",
    "Gaussian before": "Gaussian noise",
    "uniform ± 0.1 before": "Uniform noise (± 0.1)",
    "LayerNorm, before": "LayerNorm",
}


class SmallNet(nn.Module):
    """Three blocks of convolution, norm and ReLU, noise at a place: (B, 1, 8, 8) → (B, 10)."""

    def __init__(self, noise: str, where: str, norm: str) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        widths = (1, 16, 32, 32)
        for index, (before, after) in enumerate(itertools.pairwise(widths)):
            last = index == len(widths) - 2
            layers.append(nn.Conv2d(before, after, 3, padding=1, bias=False))
            if where == "before":
                layers.append(NOISE[noise]())
            layers.append(nn.BatchNorm2d(after) if norm == "batch" else nn.GroupNorm(1, after))
            layers.append(nn.ReLU())
            if (where == "between" and not last) or (where == "after" and last):
                layers.append(NOISE[noise]())
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.head = nn.Linear(4 * widths[-1], 10)
        init_he(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def measure(form: Form) -> Numbers:
    epochs = 12 if form.quick else 60
    data = Digits(shift=0)
    training = [(data.normalize(x), y) for x, y in data.plain("train", 128)]
    held_out = [(data.normalize(x), y) for x, y in data.plain("validation", 128)]
    arms: dict[str, dict[str, list[float]]] = {}
    for name, (noise, where, norm) in ARMS.items():
        for seed in range(form.seeds):
            network = build(seed, SmallNet, noise=noise, where=where, norm=norm)
            network = fit_once(network, Digits(shift=0), epochs=epochs, seed=seed).network
            _add(arms, name, network, training, held_out)
            if name == AT_FAULT:  # the same network, its statistics estimated with dropout off
                recalibrate(network, training)
                _add(arms, RECALIBRATED, network.eval(), training, held_out)
    return {"arms": arms, "epochs": epochs, "rate": RATE}


def _add(
    arms: dict[str, dict[str, list[float]]],
    name: str,
    network: nn.Module,
    training: list[Any],
    held_out: list[Any],
) -> None:
    """Adds what is measured of a trained network; each ratio is that of its own worst layer."""
    found = arms.setdefault(name, {"ratio": [], "running": [], "loss": [], "accuracy": []})
    layers = variance_shift(network, training).layers
    ratios = {
        "ratio": farthest(layer.ratio for layer in layers),
        "running": farthest(layer.running_ratio for layer in layers),
    }
    for kind, value in ratios.items():
        found[kind] += [] if value is None else [value]
    with torch.no_grad():
        outputs = torch.cat([network(x) for x, _ in held_out])
    labels = torch.cat([y for _, y in held_out])
    found["loss"].append(float(nn.functional.cross_entropy(outputs, labels)))
    found["accuracy"].append(float((outputs.argmax(1) == labels).float().mean()))


def judge_all(numbers: Numbers) -> list[Finding]:
    arms = numbers["arms"]

    def shift(says: str, arm: str, kind: str, shifts: bool, why: str = "") -> Finding:
        excess = [abs(math.log(value)) - NOTHING for value in arms[arm][kind]]
        what = "dropout on / off" if kind == "ratio" else "running / evaluation"
        room = excess if shifts else [-value for value in excess]
        return within(says, f"variance, {what}, worst layer", arms[arm][kind], room, why)

    last = arms["after the last"]["ratio"]
    findings = [
        shift("Dropout before BatchNorm shifts its variance.", AT_FAULT, "ratio", True),
        shift("Between blocks, too.", "between blocks", "ratio", True),
        exactly(
            "After the last BatchNorm, nothing shifts.",
            "variance, dropout on / off, worst layer, which no dropout precedes",
            max(last, key=lambda ratio: abs(math.log(ratio))),
            all(ratio == 1 for ratio in last),
        ),
        shift("Recalibration repairs it.", RECALIBRATED, "running", False),
        shift(
            "Dropout2d before BatchNorm avoids it.",
            "Dropout2d before",
            "ratio",
            False,
            "A channel that is dropped or scaled varies from image to image, and BatchNorm takes "
            "its variance over images too.",
        ),
        shift(
            "Gaussian noise avoids it.",
            "Gaussian before",
            "ratio",
            False,
            "The shift depends on the variance of the noise, which is that of dropout at this "
            "rate.",
        ),
        shift(
            f"Uniform noise (± 0.1) avoids it, having a variance {SMALLER:.0f} times less than "
            "dropout's.",
            "uniform ± 0.1 before",
            "ratio",
            False,
        ),
        exactly(
            "LayerNorm has no statistics that could shift.",
            "layers with running statistics",
            float(len(arms["LayerNorm, before"]["ratio"])),
            not arms["LayerNorm, before"]["ratio"],
        ),
    ]
    for arm, what in REMEDIES.items():
        # Seed by seed: initial weights and order are the same, of recalibration all weights.
        pairs = zip(arms[AT_FAULT]["loss"], arms[arm]["loss"], strict=True)
        lower = [before - after for before, after in pairs]
        running = arms[arm]["running"]
        why = ""
        if running:
            why = (
                f"Its running variance is {mean(running):.1f} times that of evaluation, with "
                f"element-wise dropout {mean(arms[AT_FAULT]['running']):.1f} times."
            )
            if mean(running) < mean(arms[AT_FAULT]["running"]):
                why += " A smaller running variance alone does not lower the loss."
        findings.append(
            within(
                f"{what} lowers the held-out loss.",
                "validation loss (nats), dropout before BatchNorm less this",
                lower,
                lower,
                why,
            )
        )
    return findings


def draw(numbers: Numbers) -> Any:
    figure, axes = new_figure(1, 2, WIDTH, 5.2, sharey=True)
    names = list(numbers["arms"])
    left, right = axes.flat
    dark, light = palette(2)
    left.axvspan(math.exp(-NOTHING), math.exp(NOTHING), color="0.8", label="no shift")
    for kind, marker, color, label in (
        ("ratio", "o", dark, "dropout on / off"),
        ("running", "s", light, "running / evaluation"),
    ):
        for row, name in enumerate(reversed(names)):
            if values := numbers["arms"][name][kind]:
                value, low, high = interval(values)
                left.errorbar(
                    value,
                    row + (0.15 if kind == "ratio" else -0.15),
                    xerr=[[value - low], [high - value]],
                    marker=marker,
                    color=color,
                    linestyle="",
                    capsize=4,
                    label=label if name == AT_FAULT else None,
                )
    left.set_xscale("log")
    left.xaxis.set_major_formatter("{x:g}")
    left.set_xticks([1, 1.5, 2, 3, 5, 10])
    left.xaxis.set_minor_formatter("")
    finish(left, "ratio of variances, worst BatchNorm", "", "shift: 1 is none")
    left.legend(loc="lower right")
    losses = {name: found["loss"] for name, found in numbers["arms"].items()}
    draw_points(right, losses, "validation loss (nats)", "held-out loss: lower is better")
    return figure


def message(numbers: Numbers) -> str:
    arms = numbers["arms"]
    ratio, loss = (mean(arms[AT_FAULT][kind]) for kind in ("ratio", "loss"))
    repaired = mean(arms[RECALIBRATED]["loss"])
    last = mean(arms["after the last"]["loss"])
    return (
        f"Dropout before BatchNorm: {ratio:.2f} times the variance in training, held-out loss "
        f"{loss:.2f}; recalibrated {repaired:.2f}, moved after the last {last:.2f}"
    )


CLAIM = Claim(
    "variance-shift",
    "Dropout before BatchNorm makes it remember a variance that evaluation does not meet. "
    "Remedies: dropout after the last BatchNorm, recalibration, Dropout2d, Gaussian or "
    "uniform noise, LayerNorm.",
    measure,
    judge_all,
    draw,
    message,
)
