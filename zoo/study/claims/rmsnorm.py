"""RMSNorm against LayerNorm: time by width, and quality on a transformer.

Time compares like with like: both written in torch's operations, as the paper compares them, and
each by the fastest code that this project has for it. On a CPU torch has one kernel for LayerNorm
and none for RMSNorm.
"""

from __future__ import annotations

import itertools
import time
from statistics import mean, median
from typing import Any

import torch
from torch import Tensor, nn

from zoo.data.shakespeare import PythonTopics
from zoo.networks.layers import make_norm
from zoo.networks.transformer import Transformer
from zoo.study.claims.base import Claim, Finding, Form, Numbers, larger, within
from zoo.study.fitting import build, train
from zoo.study.pictures import draw_points, finish, line, new_mosaic
from zoo.tasks.language_model import LanguageModel

WIDTHS = (64, 128, 256, 512, 1024)
TOKENS = 2048
FASTER = 0.15  # of LayerNorm's time, in the documents
QUALITY = 0.02  # nats
WAYS = {
    "operations": "both in torch's operations",
    "fastest": "each by the fastest code for it",
}
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


def milliseconds(norm: nn.Module, width: int, repeats: int, device: str) -> float:
    """The time of a forward and backward of 2048 tokens.

    On a CPU it is processor time of one thread, which other programs hardly lengthen.
    """
    from torch.utils.benchmark import Timer, timer

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
    devices = {"one CPU thread": "cpu"} | ({"GPU": "cuda"} if torch.cuda.is_available() else {})
    times: dict[str, dict[str, dict[str, list[float]]]] = {}
    for label, device in devices.items():
        for width in WIDTHS:
            norms = make_norms(width)
            for norm in norms.values():
                milliseconds(norm, width, 3, device)  # the first calls are slower
            for _ in range(7):  # in turns, so that all meet the same machine
                for name, norm in norms.items():
                    by_width = times.setdefault(label, {}).setdefault(name, {})
                    took = milliseconds(norm, width, repeats, device)
                    by_width.setdefault(str(width), []).append(took)
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
    return {"times": times, "losses": losses, "steps": steps}


def judge_all(numbers: Numbers) -> list[Finding]:
    findings = []
    for (device, times), (way, text), width in itertools.product(
        numbers["times"].items(), WAYS.items(), (WIDTHS[1], WIDTHS[-1])
    ):
        norms = (times[f"{name}, {way}"][str(width)] for name in ("LayerNorm", "RMSNorm"))
        saved = [1 - rms / layer for layer, rms in zip(*norms, strict=True)]
        findings.append(
            within(
                f"It takes about 15 % less time (half of that to twice that), {text}, at width "
                f"{width}.",
                f"part of LayerNorm's time that is saved, {device}, over {len(saved)} timings",
                saved,
                [min(value - FASTER / 2, 2 * FASTER - value) for value in saved],
                KERNEL if way == "fastest" and device != "GPU" else "",
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
    devices = numbers["times"]
    figure, axes = new_mosaic(["aaz"], 4.6) if len(devices) == 1 else new_mosaic(["ab", "zz"], 8.4)
    for letter, (device, times) in zip("ab", devices.items(), strict=False):
        _draw_times(axes[letter], times, f"time, {device}: lower is faster")
    title = f"transformer, {numbers['steps']} steps: lower is better"
    draw_points(axes["z"], numbers["losses"], "validation loss (nats)", title)
    return figure


def _draw_times(axis: Any, times: dict[str, dict[str, list[float]]], title: str) -> None:
    for index, (name, by_width) in enumerate(times.items()):
        widths = [int(width) for width in by_width]
        style = line(index, len(times))
        middle = [median(values) for values in by_width.values()]
        axis.plot(widths, middle, label=name, **style)
        lowest = [min(values) for values in by_width.values()]
        highest = [max(values) for values in by_width.values()]
        axis.fill_between(widths, lowest, highest, color=style["color"], alpha=0.2, linewidth=0)
    axis.set_xscale("log", base=2)
    axis.set_xticks(WIDTHS, [str(width) for width in WIDTHS])
    axis.set_yscale("log")
    axis.set_ylim(top=5 * axis.get_ylim()[1])  # room for the legend
    finish(axis, "width (features)", f"ms, forward and backward of {TOKENS} tokens", title)
    axis.legend()


def message(numbers: Numbers) -> str:
    width = str(WIDTHS[-1])

    def ratios_on(device: str) -> str:
        times = numbers["times"][device]
        pairs = {
            way: zip(
                times[f"RMSNorm, {way}"][width], times[f"LayerNorm, {way}"][width], strict=True
            )
            for way in WAYS
        }
        ratios = [mean(rms / layer for rms, layer in timed) for timed in pairs.values()]
        return (
            f"on {device} {ratios[0]:.2f} times in torch's operations, {ratios[1]:.2f} by the "
            "fastest code for each"
        )

    found = "; ".join(map(ratios_on, numbers["times"]))
    return f"RMSNorm against LayerNorm's time at width {width}: {found}"


CLAIM = Claim(
    "rmsnorm",
    "RMSNorm leaves centering out: about 15 % faster than LayerNorm, and as good.",
    measure,
    judge_all,
    draw,
    message,
    bars="Lines of times: medians, in a band from the least to the most of 7; bars of losses: ± 2 "
    "standard errors over seeds.",
)
