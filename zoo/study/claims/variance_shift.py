"""Dropout before BatchNorm shifts the variance that evaluation normalizes by; and what helps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from zoo.data.digits import Digits
from zoo.diagnostics.recalibrate import recalibrate
from zoo.diagnostics.variance_shift import NOTHING, variance_shift
from zoo.networks.initializers import init_he
from zoo.networks.layers import GaussianDropout
from zoo.study.claims.base import Claim, Finding, Form, Numbers, exactly, interval
from zoo.study.fitting import build, fit
from zoo.study.pictures import COLORS, finish, new_figure
from zoo.study.verdicts import judge

RATE = 0.5


class UniformNoise(nn.Module):
    """Multiplies by 1 + r, r uniform in ±0.1 (Li et al., CVPR 2019, section 5.2)."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * (1 + torch.empty_like(x).uniform_(-0.1, 0.1))


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
        found = arms[name] = {"ratio": [], "running": [], "loss": [], "accuracy": []}
        for seed in range(form.seeds):
            network = build(seed, SmallNet, noise=noise, where=where, norm=norm)
            fitted = fit(network, Digits(shift=0), epochs=epochs, seed=seed)
            found["loss"].append(fitted.final("val/loss"))
            found["accuracy"].append(fitted.final("val/accuracy"))
            worst = variance_shift(fitted.network, training).worst
            if worst is None:
                continue
            found["ratio"].append(worst.ratio)
            found["running"].append(worst.running_ratio)
            if name == "before BatchNorm":
                _recalibrated(fitted.network, training, held_out, arms)
    return {"arms": arms, "epochs": epochs, "rate": RATE}


def _recalibrated(
    network: nn.Module, training: list[Any], held_out: list[Any], arms: dict[str, Any]
) -> None:
    """The same trained network, its statistics estimated anew with dropout off."""
    found = arms.setdefault(
        "before, recalibrated", {"ratio": [], "running": [], "loss": [], "accuracy": []}
    )
    recalibrate(network, training)
    network.eval()
    worst = variance_shift(network, training).worst
    assert worst is not None
    found["ratio"].append(worst.ratio)
    found["running"].append(worst.running_ratio)
    with torch.no_grad():
        outputs = torch.cat([network(x) for x, _ in held_out])
    labels = torch.cat([y for _, y in held_out])
    found["loss"].append(float(nn.functional.cross_entropy(outputs, labels)))
    found["accuracy"].append(float((outputs.argmax(1) == labels).float().mean()))


def judge_all(numbers: Numbers) -> list[Finding]:
    arms = numbers["arms"]

    def finding(says: str, arm: str, kind: str, shifts: bool, why: str = "") -> Finding:
        value, low, high = interval(arms[arm][kind])
        logs, logs_low, logs_high = interval([abs(math.log(v)) for v in arms[arm][kind]])
        excess = logs - NOTHING
        gap = excess if shifts else -excess
        what = "dropout on / off" if kind == "ratio" else "running / evaluation"
        verdict = judge(gap, (logs_high - logs_low) / 4)
        return Finding(says, f"variance, {what}, worst layer", value, low, high, verdict, why)

    return [
        finding("Dropout before BatchNorm shifts its variance.", "before BatchNorm", "ratio", True),
        finding("Between blocks, too.", "between blocks", "ratio", True),
        finding("After the last BatchNorm, nothing shifts.", "after the last", "ratio", False),
        finding("Recalibration repairs it.", "before, recalibrated", "running", False),
        finding(
            "Dropout2d before BatchNorm avoids it.",
            "Dropout2d before",
            "ratio",
            False,
            "A channel that is dropped or scaled varies from image to image, and BatchNorm takes "
            "its variance over images too.",
        ),
        finding(
            "Gaussian noise avoids it.",
            "Gaussian before",
            "ratio",
            False,
            "The shift depends on the variance of the noise, which is that of dropout at this "
            "rate.",
        ),
        finding("Uniform noise (± 0.1) avoids it.", "uniform ± 0.1 before", "ratio", False),
        exactly(
            "LayerNorm has no statistics that could shift.",
            "layers with running statistics",
            float(len(arms["LayerNorm, before"]["ratio"])),
            not arms["LayerNorm, before"]["ratio"],
        ),
    ]


def draw(numbers: Numbers) -> Any:
    figure, axes = new_figure(1, 2, 14, 4.8, sharey=True)
    names = list(numbers["arms"])[::-1]
    places = range(len(names))
    left, right = axes.flat
    for kind, marker, color, label in (
        ("ratio", "o", COLORS[2], "dropout on / off"),
        ("running", "s", COLORS[1], "remembered / evaluation"),
    ):
        for place, name in zip(places, names, strict=True):
            if values := numbers["arms"][name][kind]:
                value, low, high = interval(values)
                left.errorbar(
                    value,
                    place + (0.1 if kind == "ratio" else -0.1),
                    xerr=[[value - low], [high - value]],
                    marker=marker,
                    color=color,
                    capsize=3,
                    label=label if name == "before BatchNorm" else None,
                )
    left.axvspan(math.exp(-NOTHING), math.exp(NOTHING), color="grey", alpha=0.3, label="no shift")
    left.set_xscale("log")
    left.xaxis.set_major_formatter("{x:g}")
    left.set_xticks([1, 1.5, 2, 3, 5, 10])
    left.xaxis.set_minor_formatter("")
    left.set_yticks(places, names)
    finish(left, "ratio of variances of BatchNorm's input, worst layer", "")
    left.legend(fontsize=8)
    for place, name in zip(places, names, strict=True):
        value, low, high = interval(numbers["arms"][name]["loss"])
        errors = [[value - low], [high - value]]
        right.barh(place, value, color=COLORS[6], edgecolor="black", xerr=errors, capsize=3)
    finish(right, "validation loss (nats)", "")
    return figure


CLAIM = Claim(
    "variance-shift",
    "Dropout before BatchNorm makes it remember a variance that evaluation does not meet. "
    "Remedies: dropout after the last BatchNorm, recalibration, Dropout2d, Gaussian or "
    "uniform noise, LayerNorm.",
    measure,
    judge_all,
    draw,
)
