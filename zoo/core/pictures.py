"""Figures and grids of images as PNG, and an animation of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from zoo.core.files import written_whole


def save_grid(images: Tensor, columns: int, path: Path, scale: int = 2) -> None:
    """Saves images (B, C, H, W) in [0, 1] as a grid, row by row, without labels.

    Args:
        images: gray or color.
        columns: images in a row.
        path: a PNG.
        scale: pixels a pixel.
    """
    from PIL import Image
    from torchvision.utils import make_grid

    grid = make_grid(images.cpu(), nrow=columns, padding=1, pad_value=1.0)
    pixels = grid.mul(255).round().byte().permute(1, 2, 0).numpy()
    height, width = pixels.shape[:2]
    picture = Image.fromarray(pixels).resize(
        (width * scale, height * scale), Image.Resampling.NEAREST
    )
    with written_whole(path) as partial:
        picture.save(partial, format="png")


def save_labeled(images: Tensor, columns: int, rows: Sequence[str], path: Path, title: str) -> None:
    """Saves images as a grid with a label before each row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.6 + 0.7 * columns, 0.5 + 0.75 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for index, axis in enumerate(axes.flat):
        axis.set_xticks([])
        axis.set_yticks([])
        if index >= len(images):
            axis.set_axis_off()
            continue
        image = images[index].cpu().permute(1, 2, 0).squeeze(-1)
        axis.imshow(image.numpy(), cmap="gray" if image.ndim == 2 else None, vmin=0, vmax=1)
    for axis, word in zip(axes[:, 0], rows, strict=True):
        axis.set_ylabel(word, rotation=0, ha="right", va="center", fontsize=9)
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path, dpi=100)


def save_segmentation(
    images: Tensor, masks: Tensor, predicted: Tensor, classes: Sequence[str], path: Path, title: str
) -> None:
    """Saves images with their masks and the predicted masks under them, a color for each class.

    Args:
        images: (B, C, H, W), of any range.
        masks, predicted: classes (B, H, W).
        classes: their names.
        path: a PNG.
        title: of the picture.
    """
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    count = len(images)
    figure = Figure(figsize=(1.3 * count + 1.8, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(3, count, squeeze=False)
    colors = [colormaps["tab20"](index % 20) for index in range(len(classes))]
    colors[0] = (0.0, 0.0, 0.0, 1.0)  # most often the background
    for row, (name, found) in enumerate(
        (("image", images.float().mean(1)), ("mask", masks), ("prediction", predicted))
    ):
        for axis, one in zip(axes[row], found.cpu(), strict=True):
            axis.set_xticks([])
            axis.set_yticks([])
            if row == 0:
                axis.imshow(one.numpy(), cmap="gray")
            else:
                axis.imshow([[colors[label] for label in line] for line in one.tolist()])
        axes[row, 0].set_ylabel(name)
    patches = [Patch(color=color, label=name) for color, name in zip(colors, classes, strict=True)]
    figure.legend(handles=patches, loc="outside right center", fontsize=8)
    figure.suptitle(title, fontsize=10)
    save_figure(figure, path, dpi=100)


def save_figure(figure: Any, path: Path, dpi: int = 120) -> None:
    """Saves a matplotlib figure as PNG."""
    with written_whole(path) as partial:
        figure.savefig(partial, format="png", dpi=dpi)


def animate(frames: Sequence[Path], path: Path, milliseconds: int = 400) -> None:
    """Joins PNG files into an animated GIF, the last of which stays longer."""
    from PIL import Image

    pictures = [Image.open(frame).convert("L") for frame in frames]
    durations = [milliseconds] * (len(pictures) - 1) + [4 * milliseconds]
    with written_whole(path) as partial:
        pictures[0].save(
            partial,
            format="gif",
            save_all=True,
            append_images=pictures[1:],
            duration=durations,
            loop=0,
        )
