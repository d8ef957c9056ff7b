"""RMSNorm against LayerNorm: time by width, and quality on a transformer.

Time compares like with like: both written in torch's operations, as the paper compares them, and
each by the fastest code that this project has for it. On a CPU torch has one kernel for LayerNorm
and none for RMSNorm.
"""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from zoo.data.shakespeare import PythonTopics
from zoo.networks.layers import make_norm
from zoo.networks.transformer import Transformer
from zoo.study.claims.base import Claim, Finding, Form, Numbers, interval, larger
from zoo.study.fitting import build, train
from zoo.study.pictures import COLORS, MARKERS, STYLES, finish, new_figure
from zoo.study.verdicts import judge
from zoo.tasks.language_model import LanguageModel

WIDTHS = (64, 128, 256, 512, 1024)
TOKENS = 2048
FASTER = 0.15  # of LayerNorm's time, in the documents
QUALITY = 0.02  # nats
KERNEL = (
    "On a CPU torch has one kernel for LayerNorm, which reads the input once; RMSNorm is several "
    "operations, each of which goes over memory."
)


class PlainLayerNorm(nn.LayerNorm):
    """LayerNorm (Ba et al. 2016) in torch's operations."""

    def forward(self, input: Tensor) -> Tensor:
        centered = input - input.mean(-1, keepdim=True)
        scale = (centered.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        return centered * scale * self.weight + self.bias


class PlainRMSNorm(nn.RMSNorm):
    """RMSNorm (Zhang & Sennrich 2019) in torch's operations."""

    def forward(self, x: Tensor) -> Tensor:
        assert self.eps is not None
        return x * (x.square().mean(-1, keepdim=True) + self.eps).rsqrt() * self.weight


def make_norms(width: int) -> dict[str, nn.Module]:
    """What is timed, by its name in the picture: LayerNorm and RMSNorm in two ways each."""
    return {
        "LayerNorm, operations": PlainLayerNorm(width, 1e-6),
        "RMSNorm, operations": PlainRMSNorm(width, 1e-6),
        "LayerNorm, fastest": make_norm("layernorm", width),  # torch's kernel
        "RMSNorm, fastest": make_norm("rmsnorm", width),  # zoo.networks.fast
    }


def milliseconds(norm: nn.Module, width: int, repeats: int) -> float:
    """The time of a forward and backward of 2048 tokens, on the device that there is.

    On a CPU it is processor time of one thread, which other programs hardly lengthen.
    """
    from torch.utils.benchmark import Timer, timer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    norm = norm.to(device)
    x = torch.randn(TOKENS, width, device=device, requires_grad=True)
    ones = torch.ones_like(x)
    measurement = Timer(
        "torch.autograd.grad(norm(x), [x, *norm.parameters()], ones)",
        globals={"torch": torch, "norm": norm, "x": x, "ones": ones},
        timer=time.process_time if device == "cpu" else timer,
    )
    return 1e3 * float(measurement.timeit(repeats).median)


def measure(form: Form) -> Numbers:
    repeats = 20 if form.quick else 200
    times: dict[str, dict[str, list[float]]] = {}
    for width in WIDTHS:
        norms = make_norms(width)
        for norm in norms.values():
            milliseconds(norm, width, 3)  # the first calls are slower
        for _ in range(7):  # in turns, so that all meet the same machine
            for name, norm in norms.items():
                found = times.setdefault(name, {}).setdefault(str(width), [])
                found.append(milliseconds(norm, width, repeats))
    losses: dict[str, list[float]] = {"LayerNorm": [], "RMSNorm": []}
    steps = 150 if form.quick else 2000
    for name, losses_of in losses.items():
        for seed in range(form.seeds):
            data = PythonTopics(context_length=64, batch_size=16, epoch_steps=steps)
            network = build(
                seed,
                Transformer,
                vocab_size=len(data.vocabulary),
                context_length=64,
                embed_dim=64,
                depth=2,
                num_heads=4,
                norm=name.lower(),
            )
            task = LanguageModel(network, lr=3e-3)
            fitted = train(task, data, epochs=1, seed=seed, limit_val_batches=20)
            losses_of.append(fitted.final("val/loss"))
    device = "GPU" if torch.cuda.is_available() else "one CPU thread"
    return {"times": times, "losses": losses, "device": device, "steps": steps}


def judge_all(numbers: Numbers) -> list[Finding]:
    findings = []
    times = numbers["times"]
    for way, text in (
        ("operations", "both in torch's operations"),
        ("fastest", "each by the fastest code for it"),
    ):
        for width in map(str, (WIDTHS[1], WIDTHS[-1])):
            pairs = zip(
                times[f"LayerNorm, {way}"][width], times[f"RMSNorm, {way}"][width], strict=True
            )
            value, low, high = interval([1 - rms / layer for layer, rms in pairs])
            findings.append(
                Finding(
                    f"It takes about 15 % less time (at least half of that), {text}, at width "
                    f"{width}.",
                    f"part of LayerNorm's time that is saved, {numbers['device']}",
                    value,
                    low,
                    high,
                    judge(value - FASTER / 2, (high - low) / 4),
                    KERNEL if way == "fastest" else "",
                )
            )
    findings.append(
        larger(
            f"It is as good: no more than {QUALITY} nats worse.",
            f"validation loss, LayerNorm's less RMSNorm's, after {numbers['steps']} steps (nats)",
            numbers["losses"]["LayerNorm"],
            numbers["losses"]["RMSNorm"],
            least=-QUALITY,
        )
    )
    return findings


def draw(numbers: Numbers) -> Any:
    figure, axes = new_figure(1, 2, 12, 4.8)
    for index, (name, by_width) in enumerate(numbers["times"].items()):
        middle = [median(values) for values in by_width.values()]
        widths = [int(width) for width in by_width]
        color, fill = COLORS[index % 2 + 1], "full" if index < 2 else "none"
        style = {"color": color, "marker": MARKERS[index], "fillstyle": fill}
        axes[0, 0].plot(widths, middle, label=name, linestyle=STYLES[index], **style)
        axes[0, 0].fill_between(
            widths,
            [min(values) for values in by_width.values()],
            [max(values) for values in by_width.values()],
            color=color,
            alpha=0.2,
            linewidth=0,
        )
    for index, values in enumerate(numbers["losses"].values()):
        value, low, high = interval(values)
        errors = [[value - low], [high - value]]
        style = {"color": COLORS[index + 1], "marker": MARKERS[index], "linestyle": ""}
        axes[0, 1].errorbar([index], [value], yerr=errors, capsize=5, **style)
        axes[0, 1].plot([index + 0.1] * len(values), values, ".", color=style["color"], alpha=0.5)
    axes[0, 0].set_xscale("log", base=2)
    axes[0, 0].set_xticks(WIDTHS, [str(width) for width in WIDTHS])
    axes[0, 0].set_yscale("log")
    device = numbers["device"]
    finish(axes[0, 0], "width", f"ms, forward and backward of {TOKENS} tokens", f"time, {device}")
    axes[0, 0].legend()
    axes[0, 1].set_xticks([0, 1], list(numbers["losses"]))
    axes[0, 1].set_xlim(-0.5, 1.5)
    finish(axes[0, 1], "", "validation loss (nats)", f"transformer, {numbers['steps']} steps")
    return figure


CLAIM = Claim(
    "rmsnorm",
    "RMSNorm leaves centering out: about 15 % faster than LayerNorm, and as good.",
    measure,
    judge_all,
    draw,
)
