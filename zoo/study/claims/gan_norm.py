"""BatchNorm in a GAN's discriminator against spectral norm: Fréchet distance and failures."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm
from torchmetrics.image.fid import FrechetInceptionDistance

from zoo.data.digits import Digits
from zoo.networks.convnet import ConvNet
from zoo.study.claims.base import Claim, Finding, Form, Numbers, larger
from zoo.study.fitting import build, fit
from zoo.study.pictures import draw_points, new_figure
from zoo.tasks.gan.losses import hinge_discriminator, hinge_generator

LATENT = 32
FAILED = 0.5  # of an untrained generator's distance: a larger one counts as a failure
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
    trained = fit(classifier, Digits(), epochs=20, seed=0).network
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
                shown[norm] = ((made[:40, 0] + 1) * 127.5).round().byte().tolist()
    return {
        "distances": distances,
        "floor": floor,
        "untrained": untrained,
        "shown": shown,
        "steps": steps,
    }


def failures(numbers: Numbers, norm: str) -> list[float]:
    """1 for each seed that failed, else 0."""
    return [float(d > FAILED * numbers["untrained"]) for d in numbers["distances"][norm]]


def judge_all(numbers: Numbers) -> list[Finding]:
    distances = numbers["distances"]
    return [
        larger(
            "Spectral norm gives better images than BatchNorm in the discriminator.",
            "Fréchet distance, BatchNorm's less spectral norm's",
            distances["BatchNorm"],
            distances["spectral norm"],
        ),
        larger(
            "And fails more rarely.",
            f"part of seeds with a distance above {FAILED:g} of an untrained generator's, "
            "BatchNorm's less spectral norm's",
            failures(numbers, "BatchNorm"),
            failures(numbers, "spectral norm"),
            why=f"After {numbers['steps']:,} steps no more runs fail with one than with the other.",
        ),
    ]


def draw(numbers: Numbers) -> Any:
    figure, axes = new_figure(1, 1 + len(NORMS), 17, 4.8)
    axis = axes[0, 0]
    draw_points(axis, numbers["distances"], "Fréchet distance of a classifier's features", "")
    axis.axhline(numbers["floor"], color="grey", linestyle=":", label="real test images")
    axis.legend(fontsize=8)
    for axis, (norm, images) in zip(axes[0, 1:], numbers["shown"].items(), strict=True):
        pixels = F.pad(torch.tensor(images), (0, 1, 0, 1), value=255)
        grid = pixels.view(5, 8, 9, 9).permute(0, 2, 1, 3).reshape(45, 72)
        axis.imshow(grid.numpy(), cmap="gray")
        axis.set_axis_off()
        axis.set_title(f"discriminator with {norm}, seed 0", fontsize=11)
    return figure


CLAIM = Claim(
    "gan-norm",
    "BatchNorm belongs into the generator and not into the discriminator, where spectral norm "
    "trains better and fails more rarely.",
    measure,
    judge_all,
    draw,
)
