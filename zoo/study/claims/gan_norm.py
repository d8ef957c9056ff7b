"""BatchNorm in a GAN's discriminator against spectral norm: Fréchet distance and failures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import mean
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm
from torchmetrics.image.fid import FrechetInceptionDistance

from zoo.data.digits import Digits
from zoo.networks.convnet import ConvNet
from zoo.study.claims.base import Claim, Finding, Form, Numbers, around, larger
from zoo.study.claims.fits import fit_once
from zoo.study.fitting import build
from zoo.study.pictures import draw_points, new_mosaic
from zoo.study.verdicts import judge
from zoo.tasks.gan.losses import hinge_discriminator, hinge_generator

LATENT = 32
# A run fails that ends further from the training images than so many times the distance of real
# test images, which no generator can be expected to beat.
FAILED = 10
SHOWN = 20  # generated images of seed 0 that the picture shows
Norm = Literal["BatchNorm", "spectral norm", "neither"]
NORMS: tuple[Norm, ...] = ("BatchNorm", "spectral norm", "neither")


class SmallGenerator(nn.Sequential):
    """Latents (B, 32) → images (B, 1, 8, 8) in [-1, 1], with BatchNorm."""

    def __init__(self) -> None:
        super().__init__(
            nn.Linear(LATENT, 64 * 4),
            nn.Unflatten(1, (64, 2, 2)),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.ConvTranspose2d(32, 1, 4, stride=2, padding=1),
            nn.Tanh(),
        )


class SmallDiscriminator(nn.Sequential):
    """Images (B, 1, 8, 8) → scores (B, 1), normalized by ``norm``."""

    def __init__(self, norm: Norm) -> None:
        def bound(layer: nn.Module) -> nn.Module:
            return spectral_norm(layer) if norm == "spectral norm" else layer

        layers: list[nn.Module] = []
        for before, after in ((1, 32), (32, 64)):
            layers.append(bound(nn.Conv2d(before, after, 4, stride=2, padding=1)))
            if norm == "BatchNorm":
                layers.append(nn.BatchNorm2d(after))
            layers.append(nn.LeakyReLU(0.2))
        super().__init__(*layers, nn.Flatten(), bound(nn.Linear(64 * 4, 1)))


class Features(nn.Module):
    """A classifier's last hidden features, as ``FrechetInceptionDistance`` takes a network."""

    def __init__(self, classifier: ConvNet) -> None:
        super().__init__()
        self.classifier, self.num_features = classifier, classifier.num_features

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.classifier.forward_features(images)
        return self.classifier.forward_head(hidden, pre_logits=True)


def frechet(features: Features, real: Tensor, other: Tensor) -> float:
    """The Fréchet distance of a classifier's features between two sets of images."""
    distance = FrechetInceptionDistance(feature=features, normalize=True, input_img_size=(1, 8, 8))
    distance.update(real, real=True)
    distance.update(other, real=False)
    return float(distance.compute())


def generate(images: Tensor, norm: Norm, seed: int, steps: int) -> Tensor:
    """Trains a GAN on images (N, 1, 8, 8) in [-1, 1], and returns as many of its own."""
    torch.manual_seed(seed)
    generator, discriminator = SmallGenerator(), SmallDiscriminator(norm)
    adam = {"lr": 5e-4, "betas": (0.0, 0.9)}
    optimizers = [
        torch.optim.Adam(part.parameters(), **adam)  # type: ignore[arg-type]
        for part in (generator, discriminator)
    ]
    for _ in range(steps):
        real = images[torch.randint(len(images), (64,))]
        # Real and generated images apart: BatchNorm normalizes each by its own statistics.
        generated = generator(torch.randn(64, LATENT))
        scores = discriminator(real)
        loss = hinge_discriminator(scores, discriminator(generated.detach()))
        optimizers[1].zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizers[1].step()
        loss = hinge_generator(discriminator(generated))
        optimizers[0].zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizers[0].step()
    with torch.no_grad():
        return generator.eval()(torch.randn(len(images), LATENT))


def measure(form: Form) -> Numbers:
    steps = 600 if form.quick else 10_000
    data = Digits(shift=0)
    classifier = build(0, ConvNet)
    trained = fit_once(classifier, Digits(), epochs=20, seed=0).network
    assert isinstance(trained, ConvNet)
    features = Features(trained)
    images = torch.cat([x for x, _ in data.plain("train")]).float() / 127.5 - 1
    held_out = torch.cat([x for x, _ in data.plain("test")]).float() / 127.5 - 1

    def seen(x: Tensor) -> Tensor:  # as the classifier was trained to see them
        return data.normalize((x + 1) / 2).float()

    floor = frechet(features, seen(images), seen(held_out))
    untrained = frechet(features, seen(images), seen(generate(images, "neither", 0, steps=0)))
    distances: dict[str, list[float]] = {}
    shown: dict[str, Any] = {}
    for norm in NORMS:
        distances[norm] = []
        for seed in range(form.seeds):
            made = generate(images, norm, seed, steps)
            distances[norm].append(frechet(features, seen(images), seen(made)))
            if seed == 0:
                gray = ((made[:SHOWN, 0] + 1) * 127.5).round().byte()
                shown[norm] = gray.flatten(1).tolist()
    return {
        "distances": distances,
        "floor": floor,
        "untrained": untrained,
        "shown": shown,
        "steps": steps,
    }


def failures(numbers: Numbers, norm: str) -> list[bool]:
    """Which seeds failed."""
    return [distance > FAILED * numbers["floor"] for distance in numbers["distances"][norm]]


def rarer(says: str, number: str, often: Sequence[bool], rarely: Sequence[bool]) -> Finding:
    """A finding that one share is larger than another.

    Shares of few runs are often 0 or 1 and then have no spread, which is not certainty: one run of
    either outcome is added to each (Agresti & Caffo, The American Statistician 54, 2000).
    """
    added = [(sum(runs) + 1) / (len(runs) + 2) for runs in (often, rarely)]
    gap = added[0] - added[1]
    known = min(len(often), len(rarely)) > 1
    terms = [p * (1 - p) / (len(runs) + 2) for p, runs in zip(added, (often, rarely), strict=True)]
    error = math.sqrt(sum(terms)) if known else None
    return Finding(says, number, gap, *around(gap, error), judge(gap, error))


def judge_all(numbers: Numbers) -> list[Finding]:
    distances = numbers["distances"]
    counts = {norm: sum(failures(numbers, norm)) for norm in NORMS}
    of = len(distances["BatchNorm"])
    return [
        larger(
            "Spectral norm gives better images than BatchNorm in the discriminator.",
            "Fréchet distance, BatchNorm's less spectral norm's",
            distances["BatchNorm"],
            distances["spectral norm"],
        ),
        rarer(
            "And fails more rarely.",
            f"share of runs that fail (a distance above {FAILED} times that of real test images), "
            f"BatchNorm's ({counts['BatchNorm']} of {of}) less spectral norm's "
            f"({counts['spectral norm']} of {of}), one run of either outcome added to each",
            failures(numbers, "BatchNorm"),
            failures(numbers, "spectral norm"),
        ),
        larger(
            "It is spectral norm that helps: no norm at all is worse than it.",
            "Fréchet distance, neither's less spectral norm's",
            distances["neither"],
            distances["spectral norm"],
            why=f"Without any norm the distance is {mean(distances['neither']):.0f}, with spectral "
            f"norm {mean(distances['spectral norm']):.0f}: after {numbers['steps']:,} steps what "
            "helps is to leave BatchNorm out.",
        ),
    ]


def draw(numbers: Numbers) -> Any:
    figure, axes = new_mosaic(("aaa", "bcd"), 6.6, height_ratios=(1, 1.25))
    axis = axes["a"]
    title = "norm of the discriminator: lower is better"
    draw_points(axis, numbers["distances"], "Fréchet distance of a classifier's features", title)
    floor = numbers["floor"]
    axis.axvline(floor, color="grey", linestyle=":", label="real test images")
    axis.axvline(FAILED * floor, color="grey", linestyle="--", label=f"{FAILED} times: failed")
    axis.set_xlim(left=0)
    axis.legend(loc="lower right")
    for letter, (norm, images) in zip("bcd", numbers["shown"].items(), strict=True):
        pixels = F.pad(torch.tensor(images).view(SHOWN, 8, 8), (0, 1, 0, 1), value=255)
        grid = pixels.view(4, 5, 9, 9).permute(0, 2, 1, 3).reshape(36, 45)
        axes[letter].imshow(grid.numpy(), cmap="gray")
        axes[letter].set_axis_off()
        axes[letter].set_title(f"{norm}, seed 0")
    return figure


def message(numbers: Numbers) -> str:
    distances = {norm: mean(values) for norm, values in numbers["distances"].items()}
    return (
        f"With BatchNorm in the discriminator the Fréchet distance is "
        f"{distances['BatchNorm']:.0f}, with spectral norm {distances['spectral norm']:.0f}, with "
        f"neither {distances['neither']:.0f}"
    )


CLAIM = Claim(
    "gan-norm",
    "BatchNorm does not belong into the discriminator, where spectral norm trains better and fails "
    "more rarely.",
    measure,
    judge_all,
    draw,
    message,
)
