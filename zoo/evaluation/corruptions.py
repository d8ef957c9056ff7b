"""Images made worse step by step: what a classifier's answers and probabilities are worth then.

Four of the kinds of Hendrycks & Dietterich (ICLR 2019), with strengths of our own, which images of
28 pixels bear.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

from zoo.core.pictures import save_figure

STRENGTHS = (1, 2, 3, 4, 5)


def noise(images: Tensor, strength: int, seed: int = 0) -> Tensor:
    """Adds Gaussian noise with a standard deviation of 0.04 for each step."""
    generator = torch.Generator().manual_seed(seed)
    return images + 0.04 * strength * torch.randn(images.shape, generator=generator)


def blur(images: Tensor, strength: int, seed: int = 0) -> Tensor:
    """Blurs with a Gaussian: a quarter of a pixel, and 1/70 of the width for each step."""
    sigma = 0.25 + strength * images.shape[-1] / 70
    size = 2 * max(1, round(3 * sigma)) + 1
    # A kernel is at most as wide as what padding can mirror.
    most = 2 * min(images.shape[-2:]) - 1
    return gaussian_blur(images, [min(size, most)] * 2, [sigma, sigma])


def contrast(images: Tensor, strength: int, seed: int = 0) -> Tensor:
    """Takes away 15 % of the distance from each image's mean for each step."""
    mean = images.mean((1, 2, 3), keepdim=True)
    return mean + (1 - 0.15 * strength) * (images - mean)


def shift(images: Tensor, strength: int, seed: int = 0) -> Tensor:
    """Moves each image by 1/28 of its width for each step, in a random direction; black follows."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randint(4, (len(images),), generator=generator)
    distance = max(1, round(strength * images.shape[-1] / 28))
    moved = torch.zeros_like(images)
    ahead, behind = slice(distance, None), slice(None, -distance)
    for direction, (to, of) in enumerate([(ahead, behind), (behind, ahead)] * 2):
        chosen = directions == direction
        part = torch.zeros_like(images[chosen])
        if direction < 2:
            part[..., to] = images[chosen][..., of]
        else:
            part[..., to, :] = images[chosen][..., of, :]
        moved[chosen] = part
    return moved


KINDS: dict[str, Callable[[Tensor, int, int], Tensor]] = {
    "noise": noise,
    "blur": blur,
    "contrast": contrast,
    "shift": shift,
}


def corrupt(images: Tensor, kind: str, strength: int, seed: int = 0) -> Tensor:
    """Corrupts images; strength 0 leaves them as they are.

    Args:
        images: uint8 (B, C, H, W).
        kind: a key of ``KINDS``.
        strength: 0 to 5.
        seed: of noise and directions.

    Returns:
        uint8 (B, C, H, W).
    """
    if strength == 0:
        return images
    made = KINDS[kind](images.float() / 255, strength, seed)
    return (made.clamp(0, 1) * 255).round().byte()


def draw_corrupted(
    series: Mapping[str, Mapping[str, Sequence[float]]], picture: Path, title: str = ""
) -> None:
    """Draws scores over the strength of each kind of corruption; strength 0 is the images as is.

    Args:
        series: kind → name of a score (``accuracy``, or ``ECE …``) → values at 0, 1, … 5.
        picture: a PNG.
        title: of the picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.8 * len(series), 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(series), sharex=True, sharey="row", squeeze=False)
    for column, (kind, scores) in enumerate(series.items()):
        for name, values in scores.items():
            axis = axes[0 if name == "accuracy" else 1][column]
            axis.plot(range(len(values)), values, marker="o", label=name)
        axes[0][column].set_title(kind)
        axes[1][column].set_xlabel("strength")
    axes[0][0].set_ylabel("accuracy")
    axes[1][0].set_ylabel("ECE")
    axes[1][0].legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    save_figure(figure, picture)
