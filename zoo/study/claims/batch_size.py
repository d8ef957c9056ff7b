"""BatchNorm's noise and its dependence on the batch; GroupNorm and LayerNorm have neither."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.core.text import counted
from zoo.data.digits import Digits
from zoo.networks.initializers import init_he
from zoo.study.claims.base import Claim, Finding, Form, Numbers, exactly, interval, larger
from zoo.study.fitting import build, train
from zoo.study.pictures import WIDTH, draw_over, finish, line, new_figure
from zoo.tasks.image_classifier import ImageClassifier

# Batch size → epochs: large batches see more images, else they would take too few steps to learn.
EPOCHS = {2: 3, 8: 6, 32: 12, 128: 24, 256: 36}
SMALL, LARGE = (2, 8, 32), (128, 256)
HELD_OUT = 837  # 600 images to train on, so that there is a gap
DRAWS = 60  # of the other images in a batch
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "BatchNorm": nn.BatchNorm2d,
    "GroupNorm": lambda channels: nn.GroupNorm(4, channels),
    "LayerNorm": lambda channels: nn.GroupNorm(1, channels),
}


class SmallNet(nn.Module):
    """Two blocks of convolution, norm and ReLU: (B, 1, 8, 8) → (B, 10)."""

    def __init__(self, norm: str) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((1, 16), (16, 32)):
            layers += [nn.Conv2d(before, after, 3, padding=1), NORMS[norm](after), nn.ReLU()]
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.head = nn.Linear(128, 10)
        init_he(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def noise(network: nn.Module, images: Tensor, size: int, seed: int) -> float:
    """How much an image's features vary with what else is in its batch, relative to them."""
    generator = torch.Generator().manual_seed(seed)
    network = network.train()
    features = []
    with torch.no_grad():
        for _ in range(DRAWS):
            others = torch.randint(1, len(images), (size - 1,), generator=generator)
            batch = torch.cat([images[:1], images[others]])
            features.append(network.get_submodule("features")(batch)[0])
    stacked = torch.stack(features)
    return float(stacked.std(0).mean() / stacked.mean(0).abs().mean())


def refuses_one_value() -> bool:
    """Whether BatchNorm refuses a batch that leaves it one value a channel."""
    try:
        nn.BatchNorm1d(4)(torch.ones(1, 4))
    except ValueError:
        return True
    return False


def measure(form: Form) -> Numbers:
    data = Digits(shift=0)
    images = data.normalize(next(data.plain("train", 512))[0])
    noises = {
        name: {
            str(size): [
                noise(build(seed, SmallNet, norm=name), images, size, seed)
                for seed in range(form.draws)
            ]
            for size in EPOCHS
        }
        for name in NORMS
    }
    few = Digits(validation_size=HELD_OUT, shift=0)
    splits = {
        split: [(few.normalize(x), y) for x, y in few.plain(split)]
        for split in ("train", "validation")
    }
    loss: dict[str, dict[str, list[float]]] = {name: {} for name in NORMS}
    gaps: dict[str, dict[str, list[float]]] = {name: {} for name in NORMS}
    times = 1 if form.quick else 8
    for name in NORMS:
        for size, epochs in EPOCHS.items():
            losses, overfit = [], []
            for seed in range(form.seeds):
                task = ImageClassifier(
                    build(seed, SmallNet, norm=name),
                    optimizer="adamw",
                    lr=2e-3 * math.sqrt(size / 32),  # with the root of the size, as Adam's does
                    weight_decay=0.0,
                    schedule="constant",
                    warmup=0.0,
                )
                images_of = Digits(size, validation_size=HELD_OUT, shift=0)
                # Scored below, by larger batches than those that it is trained on.
                options = {"epochs": times * epochs, "seed": seed, "limit_val_batches": 0}
                network = train(task, images_of, **options).network
                losses.append(mean_loss(network, splits["validation"]))
                overfit.append(losses[-1] - mean_loss(network, splits["train"]))
            loss[name][str(size)], gaps[name][str(size)] = losses, overfit
    return {
        "noise": noises,
        "loss": loss,
        "gap": gaps,
        "refuses": refuses_one_value(),
        "epochs": {str(size): times * epochs for size, epochs in EPOCHS.items()},
    }


def mean_loss(network: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> float:
    """The cross-entropy of a network in evaluation mode, over all images."""
    with torch.no_grad():
        sums = [F.cross_entropy(network(x), y, reduction="sum") for x, y in batches]
    return float(torch.stack(sums).sum()) / sum(len(y) for _, y in batches)


def spread(by_size: dict[str, list[float]], seed: int) -> float:
    """The largest over the least validation loss over batch sizes, in the logarithm."""
    values = [losses[seed] for losses in by_size.values()]
    return math.log(max(values) / min(values))


def regularized(numbers: Numbers, sizes: tuple[int, ...]) -> list[float]:
    """For each seed, by how much BatchNorm's gap is smaller than the mean of the others'."""
    gaps = numbers["gap"]

    def gap(name: str, seed: int) -> float:
        return mean(gaps[name][str(size)][seed] for size in sizes)

    seeds = range(len(gaps["BatchNorm"][str(sizes[0])]))
    return [
        mean(gap(name, seed) for name in ("GroupNorm", "LayerNorm")) - gap("BatchNorm", seed)
        for seed in seeds
    ]


def judge_all(numbers: Numbers) -> list[Finding]:
    noises, losses = numbers["noise"], numbers["loss"]
    others = [values for n in ("GroupNorm", "LayerNorm") for values in noises[n].values()]
    independent = max(map(max, others))
    seeds = range(len(losses["BatchNorm"]["2"]))
    other = [
        mean(spread(losses[name], seed) for name in ("GroupNorm", "LayerNorm")) for seed in seeds
    ]
    small, large = (f"{sizes[0]} to {sizes[-1]}" for sizes in (SMALL, LARGE))
    gap = "validation less training loss (nats), the others' mean less BatchNorm's"
    return [
        larger(
            "BatchNorm's noise is less with larger batches.",
            "relative noise of an image's features, batch of 2 less batch of 256, over "
            f"{counted(len(noises['BatchNorm']['2']), 'seed')}",
            noises["BatchNorm"]["2"],
            noises["BatchNorm"]["256"],
        ),
        exactly(
            "GroupNorm and LayerNorm do not see the batch.",
            "largest relative noise of theirs",
            independent,
            independent < 1e-5,
        ),
        larger(
            "The noise regularizes: the gap is smaller than without it.",
            f"{gap}, batches of {small}",
            regularized(numbers, SMALL),
            [0.0] * len(seeds),
        ),
        larger(
            "It regularizes less with larger batches.",
            f"{gap}, batches of {small} less {large}",
            regularized(numbers, SMALL),
            regularized(numbers, LARGE),
        ),
        exactly(
            "BatchNorm fails at one value a channel.",
            "1 where torch refuses it",
            float(numbers["refuses"]),
            numbers["refuses"],
        ),
        larger(
            "Its validation loss depends on the batch size more than theirs.",
            "ln of largest over least loss from 2 to 256, BatchNorm's less the others'",
            [spread(losses["BatchNorm"], seed) for seed in seeds],
            other,
        ),
    ]


def draw(numbers: Numbers) -> Any:
    figure, axes = new_figure(1, 3, WIDTH, 4.2)
    # Large batches see more epochs, and all norms gain by it.
    least, most = min(numbers["epochs"].values()), max(numbers["epochs"].values())
    titles = (
        ("noise", "relative noise of an image's features", "noise, before training"),
        ("gap", "validation − training loss (nats)", f"gap, {least} to {most} epochs"),
        ("loss", "validation loss (nats)", "loss: lower is better"),
    )
    for axis, (kind, unit, title) in zip(axes.flat, titles, strict=True):
        for index, (name, by_size) in enumerate(numbers[kind].items()):
            sizes = [int(size) for size in by_size]
            draw_over(axis, sizes, list(by_size.values()), label=name, **line(index, len(NORMS)))
        axis.set_xscale("log", base=2)
        shown = [str(size) if size != LARGE[0] else "" for size in EPOCHS]  # else they touch
        axis.set_xticks(list(EPOCHS), shown)
        finish(axis, "batch size (images)", unit, title)
    axes[0, 0].legend()
    return figure


def message(numbers: Numbers) -> str:
    noises = {size: mean(values) for size, values in numbers["noise"]["BatchNorm"].items()}
    gap, low, high = interval(regularized(numbers, SMALL))
    against = f"{abs(gap):.3f} nats {'smaller' if gap > 0 else 'larger'} than the others'"
    if low <= 0 <= high:
        against = "within noise of the others'"
    return (
        f"BatchNorm's noise falls from {noises['2']:.1%} at a batch of 2 to {noises['256']:.1%} at "
        f"256; its gap at batches up to {SMALL[-1]} is {against}"
    )


CLAIM = Claim(
    "batch-size",
    "BatchNorm's noise regularizes, less with larger batches; it fails at one value a channel. "
    "GroupNorm and LayerNorm do not depend on the batch size (2 to 256).",
    measure,
    judge_all,
    draw,
    message,
)
