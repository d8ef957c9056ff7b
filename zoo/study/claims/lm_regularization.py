"""Little text and many epochs: dropout, weight decay, both, and an ensemble."""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from zoo.core.files import write_text
from zoo.data.shakespeare import Shakespeare
from zoo.data.text import TextFile
from zoo.networks.transformer import Transformer
from zoo.study.claims.base import Claim, Finding, Form, Numbers, larger, within
from zoo.study.fitting import build, train
from zoo.study.pictures import WIDTH, draw_points, new_figure
from zoo.tasks.language_model import LanguageModel

MEMBERS = 4
ENSEMBLE = f"{MEMBERS} networks with both"
USUAL = 0.1  # AdamW's weight decay of language models
# Name → (drop rate, weight decay).
ARMS = {
    "neither": (0.0, USUAL),
    "dropout": (0.2, USUAL),
    "decay × 20": (0.0, 20 * USUAL),
    "both": (0.2, 20 * USUAL),
}


def measure(form: Form) -> Numbers:
    characters, width, depth, length = (15_000, 64, 2, 32) if form.quick else (40_000, 96, 3, 64)
    passes = 25 if form.quick else 50
    shakespeare = Shakespeare(context_length=length)
    shakespeare.prepare_data()
    loss: dict[str, list[float]] = {}
    gap: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "part.txt")
        write_text(path, shakespeare.used.read()[:characters])
        members: list[nn.Module] = []
        for name, (drop_rate, decay) in ARMS.items():
            loss[name], gap[name] = [], []
            # As many ensembles as seeds, which share no member.
            for seed in range(form.seeds * MEMBERS if name == "both" else form.seeds):
                data = TextFile(str(path), context_length=length, batch_size=16)
                network = build(
                    seed,
                    Transformer,
                    vocab_size=len(data.vocabulary),
                    context_length=length,
                    embed_dim=width,
                    depth=depth,
                    num_heads=4,
                    embed_drop_rate=drop_rate,
                    attn_drop_rate=drop_rate,
                    resid_drop_rate=drop_rate,
                    mlp_drop_rate=drop_rate,
                )
                task = LanguageModel(network, lr=3e-3, weight_decay=decay)
                # Validated once: only the end counts.
                fitted = train(task, data, epochs=passes, seed=seed, check_val_every_n_epoch=passes)
                held_out = nats([fitted.network], data, "val")
                loss[name].append(held_out)
                gap[name].append(held_out - nats([fitted.network], data, "train"))
                if name == "both":
                    members.append(fitted.network)
        together = [
            nats(members[first : first + MEMBERS], data, "val")
            for first in range(0, len(members), MEMBERS)
        ]
    return {
        "loss": loss,
        "gap": gap,
        "ensembles": together,
        "characters": characters,
        "passes": passes,
    }


def nats(networks: list[nn.Module], data: TextFile, part: str, windows: int = 100) -> float:
    """The loss a character of the mean prediction, over windows side by side from the start."""
    starts = torch.arange(windows) * data.context_length
    starts = starts[starts + data.context_length < data.sizes()[part]]
    tokens, targets = data.windows(starts, part)
    with torch.no_grad():
        outputs = torch.stack([network(tokens).softmax(-1) for network in networks])
    return float(
        F.nll_loss(outputs.mean(0).clamp_min(1e-12).log().flatten(0, 1), targets.flatten())
    )


def rival(loss: dict[str, list[float]]) -> str:
    """The best of what is not an ensemble."""
    return min(ARMS, key=lambda name: mean(loss[name]))


def judge_all(numbers: Numbers) -> list[Finding]:
    loss, gap, together = numbers["loss"], numbers["gap"], numbers["ensembles"]
    over = "held-out loss (nats a character)"
    first = rival(loss)
    training = {name: mean(loss[name]) - mean(gap[name]) for name in ("neither", "dropout")}
    ends = (
        f"Dropout raises the training loss from {training['neither']:.2f} to "
        f"{training['dropout']:.2f} nats, and the gap falls from {mean(gap['neither']):.2f} to "
        f"{mean(gap['dropout']):.2f}."
    )
    # Each ensemble against the mean of its own members.
    members = [
        mean(loss["both"][MEMBERS * index : MEMBERS * (index + 1)])
        for index in range(len(together))
    ]
    gains = [own - joint for own, joint in zip(members, together, strict=True)]
    return [
        larger(
            "Dropout helps.",
            f"{over}, neither's less dropout's",
            loss["neither"],
            loss["dropout"],
            why=ends,
        ),
        larger(
            "So does a weight decay many times the usual.",
            f"{over}, neither's less that of decay × 20",
            loss["neither"],
            loss["decay × 20"],
        ),
        larger(
            "Both help more than dropout.",
            f"{over}, dropout's less both's",
            loss["dropout"],
            loss["both"],
        ),
        larger(
            "They close the gap.",
            "held-out less training loss (nats), neither's less both's",
            gap["neither"],
            gap["both"],
        ),
        within(
            "An ensemble of four is better than its members.",
            f"{over}, the mean of its members less its own",
            gains,
            gains,
        ),
        larger(
            "And does most of all.",
            f"{over}, of {first} (the best of the others) less its own",
            loss[first],
            together,
            why="Its members have dropout and weight decay both." if first != "both" else "",
        ),
    ]


def draw(numbers: Numbers) -> Any:
    figure, axes = new_figure(1, 2, WIDTH, 4.0)
    values = {**numbers["loss"], ENSEMBLE: numbers["ensembles"]}
    draw_points(axes[0, 0], values, "held-out loss (nats a character)", "lower is better")
    title = "gap: lower overfits less"
    draw_points(axes[0, 1], numbers["gap"], "held-out − training loss (nats)", title, values)
    return figure


def message(numbers: Numbers) -> str:
    loss = {name: mean(values) for name, values in numbers["loss"].items()}
    loss[ENSEMBLE] = mean(numbers["ensembles"])
    order = sorted(loss, key=lambda name: loss[name])
    found = ", ".join(f"{name} {loss[name]:.2f}" for name in order)
    return f"Held-out loss after {numbers['passes']} passes, nats a character: {found}"


CLAIM = Claim(
    "lm-regularization",
    "With little text and many passes, dropout and a weight decay many times the usual lower the "
    "held-out loss, and an ensemble of four does most.",
    measure,
    judge_all,
    draw,
    message,
)
