"""Initial weights: variance through depth, and what trains, with and without BatchNorm."""

from __future__ import annotations

import itertools
import math
from statistics import mean
from typing import Any, Literal

from torch import Tensor, nn

from zoo.core.text import counted
from zoo.data.digits import Digits
from zoo.networks.convnet import ConvNet, make_activation
from zoo.networks.initializers import init_weights
from zoo.study.claims.base import Claim, Finding, Form, Numbers, interval, larger, within
from zoo.study.claims.fits import fit_once
from zoo.study.fitting import build
from zoo.study.pictures import HATCHES, TEXT, draw_over, finish, line, new_mosaic, palette

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
TANH = ("Xavier", "He")  # that are tried with tanh too
KEPT = 0.1  # of |ln growth| a layer that counts as keeping the variance
TRAINS = 0.8  # validation accuracy from which a network counts as trained; chance is 0.1
REMAINS = 0.01  # spread of accuracy that BatchNorm leaves, at least
EARLY = 3  # epochs after which the convolutional networks are compared
SMALLEST = 1.4e-45  # float32 has no number between it and 0, so squares below it are 0
Activation = Literal["relu", "tanh"]


class DeepMLP(nn.Module):
    """Linear → (BatchNorm) → activation, many times: images (B, 1, 8, 8) → logits (B, 10)."""

    def __init__(self, init: str, batch_norm: bool, activation: Activation = "relu") -> None:
        super().__init__()
        widths = [64, *[WIDTH] * DEPTH]
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Linear(before, after),
                nn.BatchNorm1d(after) if batch_norm else nn.Identity(),
                make_activation(activation),
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
    """Mean squares of what each block gives, and of the loss's gradient by it.

    They are taken in float64: in float32 the squares of small gradients underflow to 0.
    """
    x, kept = images.flatten(1), []
    for block in network.blocks:
        x = block(x)
        x.retain_grad()
        kept.append(x)
    loss = nn.functional.cross_entropy(network.head(x), labels)
    loss.backward()  # type: ignore[no-untyped-call]

    def squares(tensor: Tensor | None) -> float:
        return 0.0 if tensor is None else float(tensor.detach().double().square().mean())

    return {
        "activations": [squares(each) for each in kept],
        "gradients": [squares(each.grad) for each in kept],
    }


def measure(form: Form) -> Numbers:
    epochs = 10 if form.quick else 30
    data = Digits(shift=0)
    images, labels = next(data.plain("train", 512))
    arms: list[tuple[str, Activation]] = [(name, "relu") for name in INITS]
    arms += [(name, "tanh") for name in TANH]
    depth: dict[str, dict[str, list[list[float]]]] = {}
    accuracy: dict[str, dict[str, list[float]]] = {"plain": {}, "BatchNorm": {}, "tanh": {}}
    early: dict[str, list[float]] = {}

    def trained(kind: str, name: str, activation: Activation) -> list[float]:
        found = []
        for seed in range(form.seeds):
            normalized, init = kind == "BatchNorm", INITS[name]
            network = build(seed, DeepMLP, init=init, batch_norm=normalized, activation=activation)
            fitted = fit_once(network, Digits(shift=0), epochs=epochs, seed=seed)
            found.append(0.1 if fitted.diverged else fitted.final("val/accuracy"))
        return found

    for name, activation in arms:
        found = depth[f"{name}, tanh" if activation == "tanh" else name] = {
            "activations": [],
            "gradients": [],
        }
        for seed in range(form.draws):
            network = build(
                seed, DeepMLP, init=INITS[name], batch_norm=False, activation=activation
            )
            assert isinstance(network, DeepMLP)
            for kind, values in through_depth(network, data.normalize(images), labels).items():
                found[kind].append(values)
        for kind in ("tanh",) if activation == "tanh" else ("plain", "BatchNorm"):
            accuracy[kind][name] = trained(kind, name, activation)
    for name, init in INITS.items():
        early[name] = []
        for seed in range(form.seeds):
            network = build(seed, ConvNet, size="large", batch_norm=False, init=init)
            fitted = fit_once(network, Digits(shift=0), epochs=EARLY, seed=seed)
            early[name].append(fitted.final("val/loss"))
    return {"depth": depth, "accuracy": accuracy, "early": early, "epochs": epochs}


def growth(numbers: Numbers, name: str) -> list[float]:
    """By what the mean square of activations grows a layer, for each seed."""
    seeds = numbers["depth"][name]["activations"]
    return [(values[-1] / values[0]) ** (1 / (len(values) - 1)) for values in seeds]


def spreads(numbers: Numbers, kind: str) -> list[float]:
    """The largest less the least accuracy over initializations but zero, for each seed."""
    trained = [values for name, values in numbers["accuracy"][kind].items() if name != "zero"]
    return [max(values) - min(values) for values in zip(*trained, strict=True)]


def judge_all(numbers: Numbers) -> list[Finding]:
    accuracy = numbers["accuracy"]

    def kept(says: str, name: str, target: float, room: float, why: str = "") -> Finding:
        values = growth(numbers, name)
        low, high = target * math.exp(-room), target * math.exp(room)
        what = (
            f"growth of the mean square of activations a layer ({low:.2f} to {high:.2f} counts), "
            f"over {counted(len(values), 'seed')}"
        )
        return within(says, what, values, [room - abs(math.log(v / target)) for v in values], why)

    both = (accuracy["plain"]["zero"], accuracy["BatchNorm"]["zero"])
    zero = [max(pair) for pair in zip(*both, strict=True)]
    trained = f"validation accuracy after {numbers['epochs']} epochs, without BatchNorm"
    return [
        kept("He keeps the variance through ReLU.", "He", 1.0, KEPT),
        kept("Xavier, made for tanh, halves it a layer.", "Xavier", 0.5, 2 * KEPT),
        kept(
            "Xavier keeps it through tanh.",
            "Xavier, tanh",
            1.0,
            KEPT,
            "tanh lowers every value a little, and the mean square falls layer by layer; through "
            f"ReLU it is multiplied by {mean(growth(numbers, 'Xavier')):.2f}.",
        ),
        larger(
            "With ReLU, He trains better than Xavier.",
            f"{trained}, He's less Xavier's",
            accuracy["plain"]["He"],
            accuracy["plain"]["Xavier"],
        ),
        larger(
            "With tanh, Xavier trains better than He.",
            f"{trained}, Xavier's less He's",
            accuracy["tanh"]["Xavier"],
            accuracy["tanh"]["He"],
        ),
        within(
            "Zero weights do not train, with BatchNorm or without.",
            f"validation accuracy, the better of both (below {TRAINS} counts)",
            zero,
            [TRAINS - value for value in zero],
        ),
        larger(
            "BatchNorm lowers the sensitivity to initial weights (zero left out).",
            "spread of validation accuracy over initializations, without less with BatchNorm",
            spreads(numbers, "plain"),
            spreads(numbers, "BatchNorm"),
        ),
        larger(
            f"Without removing it (a spread of {REMAINS} or more).",
            "spread of validation accuracy over initializations, with BatchNorm",
            spreads(numbers, "BatchNorm"),
            [0.0] * len(spreads(numbers, "BatchNorm")),
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
    figure, axes = new_mosaic(("ab", "ll", "cc"), 9.0, height_ratios=(1.2, 0.22, 1))
    depth = numbers["depth"]
    # Zero weights have nothing that a logarithm could show.
    shown = [name for name in depth if any(map(any, depth[name]["activations"]))]
    for axis, kind in ((axes["a"], "activations"), (axes["b"], "gradients")):
        for index, name in enumerate(shown):
            logs = [
                [math.log10(value) if value else math.nan for value in seed]
                for seed in depth[name][kind]
            ]
            style = {**line(index, len(shown)), "markersize": 5, "markevery": (index, 4)}
            layers = range(1, len(logs[0]) + 1)
            draw_over(axis, layers, list(zip(*logs, strict=True)), label=name, **style)
        finish(axis, "layer", f"mean square of {kind}", f"{kind}, before training")
        lowest, highest = axis.get_ylim()
        if lowest < math.log10(SMALLEST):
            axis.axhspan(lowest, math.log10(SMALLEST), color="0.85", zorder=0)
            place: dict[str, Any] = {"xytext": (0, 5), "textcoords": "offset points"}
            text, corner = "underflows to 0 in float32", (DEPTH, lowest)
            axis.annotate(text, corner, ha="right", fontsize=TEXT, **place)
        axis.set_ylim(lowest, highest)
        axis.yaxis.set_major_formatter(lambda value, _: f"$10^{{{value:g}}}$")
    missing = ", ".join(name for name in depth if name not in shown)
    note = f"not drawn: {missing} (0 everywhere)" if missing else None
    axes["l"].set_axis_off()
    axes["l"].legend(*axes["a"].get_legend_handles_labels(), loc="center", ncols=4, title=note)
    kinds = {"plain": "ReLU", "BatchNorm": "ReLU and BatchNorm", "tanh": "tanh"}
    axis, names = axes["c"], list(numbers["accuracy"]["plain"])
    for offset, (kind, color) in enumerate(zip(kinds, palette(len(kinds)), strict=True)):
        found = {n: interval(values) for n, values in numbers["accuracy"][kind].items()}
        axis.bar(
            [names.index(name) + 0.27 * (offset - 1) for name in found],
            [middle for middle, _, _ in found.values()],
            0.27,
            yerr=[high - middle for middle, _, high in found.values()],
            color=color,
            ecolor="grey",
            edgecolor="black",
            hatch=HATCHES[offset],
            label=kinds[kind],
        )
    axis.set_xticks(range(len(names)), names)
    axis.set_ylim(0, 1.35)  # room for the legend
    axis.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axis.axhline(0.1, color="grey", linestyle=":", label="chance")
    finish(axis, "", "validation accuracy", f"after {numbers['epochs']} epochs on digits")
    axis.legend(loc="upper center", ncols=4)
    return figure


def message(numbers: Numbers) -> str:
    he, xavier = mean(growth(numbers, "He")), mean(growth(numbers, "Xavier"))
    without, with_norm = mean(spreads(numbers, "plain")), mean(spreads(numbers, "BatchNorm"))
    return (
        f"A ReLU layer multiplies the mean square by {he:.2f} with He's weights, by {xavier:.2f} "
        f"with Xavier's; accuracies lie {without:.2f} apart, with BatchNorm {with_norm:.2f}"
    )


CLAIM = Claim(
    "initialization",
    "He for ReLU, Xavier for tanh: the wrong variance vanishes or explodes through depth. "
    "BatchNorm lowers the sensitivity to initial weights without removing it.",
    measure,
    judge_all,
    draw,
    message,
)
