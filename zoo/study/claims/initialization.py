"""Initial weights: variance through depth, and what trains, with and without BatchNorm."""

from __future__ import annotations

import itertools
import math
from typing import Any

from torch import Tensor, nn

from zoo.data.digits import Digits
from zoo.networks.convnet import ConvNet
from zoo.networks.initializers import init_weights
from zoo.study.claims.base import Claim, Finding, Form, Numbers, exactly, interval, larger
from zoo.study.fitting import build, fit
from zoo.study.pictures import COLORS, MARKERS, draw_points, finish, new_figure
from zoo.study.verdicts import judge

DEPTH, WIDTH = 20, 128
# What the picture calls each → the name that ``ConvNet(init=…)`` takes.
INITS = {
    "zero": "zero",
    "N(0, 0.01²)": "normal",
    "Xavier": "xavier",
    "He": "he",
    "orthogonal": "orthogonal",
    "N(0, 0.02²)": "transformer",
}
TRAINS = 0.8  # validation accuracy from which a network counts as trained; chance is 0.1
REMAINS = 0.01  # spread of accuracy that BatchNorm leaves, at least
EARLY = 3  # epochs after which the convolutional networks are compared


class DeepMLP(nn.Module):
    """Linear → (BatchNorm) → ReLU, many times: images (B, 1, 8, 8) → logits (B, 10)."""

    def __init__(self, init: str, batch_norm: bool) -> None:
        super().__init__()
        widths = [64, *[WIDTH] * DEPTH]
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Linear(before, after),
                nn.BatchNorm1d(after) if batch_norm else nn.Identity(),
                nn.ReLU(),
            )
            for before, after in itertools.pairwise(widths)
        )
        self.head = nn.Linear(WIDTH, 10)
        init_weights(self, init)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def through_depth(network: DeepMLP, images: Tensor, labels: Tensor) -> dict[str, list[float]]:
    """Mean squares of what each block gives, and of the loss's gradient by it."""
    x, kept = images.flatten(1), []
    for block in network.blocks:
        x = block(x)
        x.retain_grad()
        kept.append(x)
    loss = nn.functional.cross_entropy(network.head(x), labels)
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = [each.grad for each in kept]
    return {
        "activations": [float(each.detach().square().mean()) for each in kept],
        "gradients": [0.0 if g is None else float(g.square().mean()) for g in gradients],
    }


def measure(form: Form) -> Numbers:
    epochs = 10 if form.quick else 30
    data = Digits(shift=0)
    images, labels = next(data.plain("train", 512))
    depth: dict[str, Any] = {}
    accuracy: dict[str, dict[str, list[float]]] = {"plain": {}, "BatchNorm": {}}
    early: dict[str, list[float]] = {}
    for name, init in INITS.items():
        network = build(0, DeepMLP, init=init, batch_norm=False)
        assert isinstance(network, DeepMLP)
        depth[name] = through_depth(network, data.normalize(images), labels)
        for kind, found in accuracy.items():
            found[name] = []
            for seed in range(form.seeds):
                network = build(seed, DeepMLP, init=init, batch_norm=kind == "BatchNorm")
                fitted = fit(network, Digits(shift=0), epochs=epochs, seed=seed)
                found[name].append(0.1 if fitted.diverged else fitted.final("val/accuracy"))
        early[name] = []
        for seed in range(form.seeds):
            network = build(seed, ConvNet, size="large", batch_norm=False, init=init)
            fitted = fit(network, Digits(shift=0), epochs=EARLY, seed=seed)
            early[name].append(fitted.final("val/loss"))
    return {"depth": depth, "accuracy": accuracy, "early": early, "epochs": epochs}


def judge_all(numbers: Numbers) -> list[Finding]:
    depth, accuracy = numbers["depth"], numbers["accuracy"]

    def a_layer(name: str) -> float:
        values = depth[name]["activations"]
        return (values[-1] / values[0]) ** (1 / (len(values) - 1)) if values[0] else 0.0

    he, xavier = a_layer("He"), a_layer("Xavier")
    zero = [max(pair) for pair in zip(*(a["zero"] for a in accuracy.values()), strict=True)]
    zero_value, low, high = interval(zero)
    spreads = {}
    for kind, found in accuracy.items():
        trained = {name: values for name, values in found.items() if name != "zero"}
        seeds = range(len(next(iter(trained.values()))))
        spreads[kind] = [
            max(v[s] for v in trained.values()) - min(v[s] for v in trained.values()) for s in seeds
        ]
    growth = "growth of the mean square of activations a layer"
    return [
        exactly("He keeps the variance through ReLU.", growth, he, abs(math.log(he)) < 0.1),
        exactly(
            "Xavier, made for tanh, halves it a layer.",
            growth,
            xavier,
            abs(math.log(xavier / 0.5)) < 0.2,
        ),
        Finding(
            "Zero weights do not train, with BatchNorm or without.",
            "validation accuracy, the better of both",
            zero_value,
            low,
            high,
            judge(TRAINS - zero_value, (high - low) / 4),
        ),
        larger(
            "BatchNorm lowers the sensitivity to initial weights (zero left out).",
            "spread of validation accuracy over initializations, without less with BatchNorm",
            spreads["plain"],
            spreads["BatchNorm"],
        ),
        larger(
            f"Without removing it (a spread of {REMAINS} or more).",
            "spread of validation accuracy over initializations, with BatchNorm",
            spreads["BatchNorm"],
            [0.0] * len(spreads["BatchNorm"]),
            least=REMAINS,
        ),
        larger(
            "A convolutional network with ReLU learns faster from He's weights than from small "
            "ones.",
            f"validation loss after {EARLY} epochs (nats), N(0, 0.01²) less He",
            numbers["early"]["N(0, 0.01²)"],
            numbers["early"]["He"],
        ),
    ]


def draw(numbers: Numbers) -> Any:
    figure, axes = new_figure(2, 2, 13, 9)
    for index, (name, found) in enumerate(numbers["depth"].items()):
        style = {"color": COLORS[index], "marker": MARKERS[index], "markersize": 4, "label": name}
        for axis, kind in zip(axes.flat, ("activations", "gradients"), strict=False):
            values = [value or math.nan for value in found[kind]]
            axis.plot(range(1, len(values) + 1), values, **style)
    for axis, kind in zip(axes.flat, ("activations", "gradients"), strict=False):
        axis.set_yscale("log")
        title = f"{kind} through depth: {DEPTH} layers with ReLU, no BatchNorm"
        finish(axis, "layer", f"mean square of {kind}", title)
    axes.flat[0].legend(fontsize=8, title="zero weights have none to draw", title_fontsize=8)
    axis, names = axes.flat[2], list(numbers["accuracy"]["plain"])
    for offset, (kind, found) in enumerate(numbers["accuracy"].items()):
        places = [index + 0.4 * offset - 0.2 for index in range(len(names))]
        middle = [interval(found[name]) for name in names]
        errors = [[m - low for m, low, _ in middle], [high - m for m, _, high in middle]]
        label = "BatchNorm" if kind == "BatchNorm" else "without"
        hatch = "//" if offset else ""
        axis.bar(
            places,
            [m for m, _, _ in middle],
            0.4,
            yerr=errors,
            color=COLORS[6 - offset * 4],
            edgecolor="black",
            hatch=hatch,
            label=label,
        )
    axis.set_xticks(range(len(names)), names, rotation=25, ha="right")
    title = f"the same network after {numbers['epochs']} epochs on digits"
    finish(axis, "", "validation accuracy", title)
    axis.legend(fontsize=8, loc="upper left")
    title = f"convolutional network, no BatchNorm, after {EARLY} epochs"
    draw_points(axes.flat[3], numbers["early"], "validation loss (nats)", title)
    return figure


CLAIM = Claim(
    "initialization",
    "He for ReLU, Xavier for tanh: the wrong variance vanishes or explodes through depth. "
    "BatchNorm lowers the sensitivity to initial weights without removing it.",
    measure,
    judge_all,
    draw,
)
