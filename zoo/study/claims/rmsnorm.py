"""RMSNorm against LayerNorm: time by width, and quality on a transformer."""

from __future__ import annotations

from statistics import median
from typing import Any

import torch
from torch import nn

from zoo.data.shakespeare import PythonTopics
from zoo.networks.layers import make_norm
from zoo.networks.transformer import Transformer
from zoo.study.claims.base import Claim, Finding, Form, Numbers, interval, larger
from zoo.study.fitting import build, train
from zoo.study.pictures import COLORS, MARKERS, finish, new_figure
from zoo.study.verdicts import judge
from zoo.tasks.language_model import LanguageModel

WIDTHS = (64, 128, 256, 512, 1024)
TOKENS = 2048
FASTER = 0.15  # of LayerNorm's time, in the documents
QUALITY = 0.02  # nats


def milliseconds(norm: nn.Module, width: int, repeats: int) -> float:
    """The median time of a forward and backward of 2048 tokens, on the device that there is."""
    from torch.utils.benchmark import Timer

    device = "cuda" if torch.cuda.is_available() else "cpu"
    norm = norm.to(device)
    x = torch.randn(TOKENS, width, device=device, requires_grad=True)
    ones = torch.ones_like(x)
    timer = Timer(
        "torch.autograd.grad(norm(x), [x, *norm.parameters()], ones)",
        globals={"torch": torch, "norm": norm, "x": x, "ones": ones},
        num_threads=torch.get_num_threads(),
    )
    return 1e3 * float(timer.timeit(repeats).median)


def measure(form: Form) -> Numbers:
    repeats = 20 if form.quick else 200
    times: dict[str, dict[str, list[float]]] = {"LayerNorm": {}, "RMSNorm": {}}
    for width in WIDTHS:
        norms = {name: make_norm(name.lower(), width) for name in times}
        for by_width in times.values():
            by_width[str(width)] = []
        for _ in range(7):  # in turns, so that both meet the same machine
            for name, norm in norms.items():
                times[name][str(width)].append(milliseconds(norm, width, repeats))
    losses: dict[str, list[float]] = {"LayerNorm": [], "RMSNorm": []}
    steps = 150 if form.quick else 2000
    for name, found in losses.items():
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
            found.append(fitted.final("val/loss"))
    device = "GPU" if torch.cuda.is_available() else "CPU"
    return {"times": times, "losses": losses, "device": device, "steps": steps}


def judge_all(numbers: Numbers) -> list[Finding]:
    findings = []
    times = numbers["times"]
    for width in (WIDTHS[1], WIDTHS[-1]):
        pairs = zip(times["LayerNorm"][str(width)], times["RMSNorm"][str(width)], strict=True)
        value, low, high = interval([1 - rms / layer for layer, rms in pairs])
        findings.append(
            Finding(
                f"It takes about 15 % less time, at width {width} (at least half of that).",
                f"part of LayerNorm's time that is saved, {numbers['device']}",
                value,
                low,
                high,
                judge(value - FASTER / 2, (high - low) / 4),
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
    figure, axes = new_figure(1, 2, 11, 4.5)
    for index, (name, by_width) in enumerate(numbers["times"].items()):
        middle = [median(values) for values in by_width.values()]
        widths = [int(width) for width in by_width]
        style = {"color": COLORS[index + 1], "marker": MARKERS[index]}
        axes[0, 0].plot(widths, middle, label=name, linestyle=("-", "--")[index], **style)
        value, low, high = interval(numbers["losses"][name])
        errors = [[value - low], [high - value]]
        axes[0, 1].errorbar([index], [value], yerr=errors, capsize=5, linestyle="", **style)
    axes[0, 0].set_xscale("log", base=2)
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
