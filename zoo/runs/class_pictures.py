"""Confusion matrix, most certain errors and a table by class, after fit, validation and test."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from zoo.core.files import written_whole
from zoo.data.normalization import Normalization
from zoo.tasks.by_class import precision, recall

ERRORS = 24  # images in the picture of the most certain errors
RIGHT, WRONG = (33, 102, 172), (217, 72, 1)  # colors of the diagonal and of all else


class ClassPictures(Callback):
    """Writes ``confusion_val.png``, ``errors_val.png`` and ``by_class_val.csv``; of a test, too.

    The errors are the wrong predictions of the highest probability: wrong labels show up there
    first, and what two classes have in common next.

    Args:
        folder: the run's.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._kept: list[Tensor] = []  # probability, true class, predicted one, place, image
        self._seen = 0

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._kept, self._seen = [], 0

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._kept, self._seen = [], 0

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._keep(trainer, outputs, batch)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._keep(trainer, outputs, batch)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._draw(trainer, pl_module, "val")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._draw(trainer, pl_module, "val")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._draw(trainer, pl_module, "test")

    def _keep(self, trainer: Trainer, logits: Any, batch: Any) -> None:
        """Keeps the most certain errors so far, without waiting for the device."""
        if not isinstance(logits, Tensor):  # of a batch that could not be read
            return
        images, labels = batch
        confidence, predicted = logits.softmax(1).max(1)
        # Right predictions are there to fill up: every process gathers as many.
        score = torch.where(predicted == labels, -1.0, confidence)
        places = torch.arange(self._seen, self._seen + len(labels), device=labels.device)
        self._seen += len(labels)
        new = [score, labels, predicted, places * trainer.world_size + trainer.global_rank, images]
        if self._kept:
            new = [torch.cat(pair) for pair in zip(self._kept, new, strict=True)]
        best = new[0].topk(min(ERRORS, len(new[0]))).indices
        self._kept = [one[best] for one in new]

    def _draw(self, trainer: Trainer, module: Any, stage: str) -> None:
        if not self._kept:
            return
        kept = self._kept
        if trainer.world_size > 1:
            # Processes may have seen fewer than there are to keep, each its own number.
            kept = [module.all_gather(_filled(one)).flatten(0, 1) for one in kept]
        if not trainer.is_global_zero:
            return
        score, labels, predicted, places, images = (one.cpu() for one in kept)
        wrong = [i for i in score.argsort(descending=True).tolist() if score[i] > 0][:ERRORS]
        matrix = module.confusion.cpu()
        classes = list(module.data_info.get("classes", map(str, range(len(matrix)))))
        write_by_class(matrix, classes, self.folder / f"by_class_{stage}.csv")
        draw_confusion(matrix, classes, self.folder / f"confusion_{stage}.png")
        picture = self.folder / f"errors_{stage}.png"
        if not wrong:
            picture.unlink(missing_ok=True)  # of an earlier part of a resumed run
            return
        list_files = getattr(trainer.datamodule, "files", None)  # type: ignore[attr-defined]
        files = list_files("test" if stage == "test" else "validation") if list_files else []
        if len(files) != int(matrix.sum()):  # some were skipped: a place is no file's number
            files = []
        info = module.data_info
        if "mean" in info:
            images = Normalization(info["mean"], info["std"]).undo(images.float())
        captions = [
            [
                f"{classes[predicted[i]]} {score[i]:.1%}",
                f"true: {classes[labels[i]]}",
                files[places[i]] if files else f"image {places[i]}",
            ]
            for i in wrong
        ]
        draw_errors(images[wrong].clamp(0, 1), captions, picture)


def _filled(kept: Tensor) -> Tensor:
    """As many entries as there are to keep; those without an image have the score of none."""
    missing = ERRORS - len(kept)
    return torch.cat([kept, kept.new_full((missing, *kept.shape[1:]), -1)]) if missing else kept


def write_by_class(matrix: Tensor, classes: Sequence[str], path: Path) -> None:
    """Writes images, recall, precision and F1 of each class.

    Args:
        matrix: images by true class (rows) and predicted class (columns), (K, K).
        classes: their names.
        path: a CSV file.
    """
    measured = recall(matrix), precision(matrix)
    f1 = 2 * matrix.diag() / (matrix.sum(0) + matrix.sum(1))
    with written_whole(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["class", "images", "recall", "precision", "f1"])
        for label, name in enumerate(classes):
            values = (float(one[label]) for one in (*measured, f1))
            shown = ("" if value != value else f"{value:.4f}" for value in values)
            writer.writerow([name, int(matrix[label].sum()), *shown])


def draw_confusion(matrix: Tensor, classes: Sequence[str], path: Path) -> None:
    """Draws the images of each true class (rows) by predicted class (columns), with recall.

    Args:
        matrix: (K, K).
        classes: their names.
        path: a PNG.
    """
    count = len(matrix)
    cell = max(1, min(44, 1400 // count))
    named = cell >= 14  # smaller, names would overlap
    size = 13 if cell >= 30 else 10
    margin = max(_width(_cut(name, 24), size) for name in classes) + 14 if named else 10
    edge = margin + count * cell
    picture = Image.new("RGB", (max(edge + 60, 420), edge + 50), "white")
    draw = ImageDraw.Draw(picture)
    shares = matrix / matrix.sum(1, keepdim=True).clamp(min=1)
    for row, column in matrix.nonzero().tolist():
        share, number = float(shares[row, column]), int(matrix[row, column])
        dark = RIGHT if row == column else WRONG
        strength = share**0.5  # so that few errors are seen as well
        color = tuple(round(255 + (part - 255) * strength) for part in dark)
        left, top = margin + column * cell, margin + row * cell
        draw.rectangle((left, top, left + cell - 1, top + cell - 1), fill=color)
        if cell >= 26:
            ink = "white" if strength > 0.6 else "black"
            draw.text((left + cell / 2, top + cell / 2), f"{number}", ink, _font(11), anchor="mm")
    draw.rectangle((margin - 1, margin - 1, edge, edge), outline="gray")
    for label, name in enumerate(classes if named else []):
        middle = margin + (label + 0.5) * cell
        draw.text((margin - 6, middle), _cut(name, 24), "black", _font(size), anchor="rm")
        _write_upward(picture, (round(middle), margin - 6), _cut(name, 24), size)
        here = float(recall(matrix)[label])
        if here == here:
            draw.text((edge + 6, middle), f"{here:.0%}", "black", _font(size), anchor="lm")
    right, images = int(matrix.diag().sum()), int(matrix.sum())
    text = f"{right:,} of {images:,} right ({right / max(1, images):.2%}). Rows: true class, with"
    draw.text((8, edge + 8), text, "black", _font(11))
    draw.text((8, edge + 24), "recall on the right. Columns: predicted class.", "black", _font(11))
    _save(picture, path)


def draw_errors(images: Tensor, captions: Sequence[Sequence[str]], path: Path) -> None:
    """Draws images in rows, with lines of text under each.

    Args:
        images: (N, C, H, W) in [0, 1], gray or color.
        captions: the lines of each.
        path: a PNG.
    """
    columns, side, line = min(6, len(images)), 128, 15
    high = side + line * max(map(len, captions)) + 12
    size = (columns * (side + 12) + 12, -(-len(images) // columns) * high + 12)
    picture = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(picture)
    for index, (image, lines) in enumerate(zip(images, captions, strict=True)):
        left, top = 12 + index % columns * (side + 12), 12 + index // columns * high
        thumbnail = to_pil_image(image[:3] if len(image) >= 3 else image[:1]).convert("RGB")
        small = max(thumbnail.size) < side
        way = Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS
        factor = side / max(thumbnail.size)
        shape = [max(1, round(length * factor)) for length in thumbnail.size]
        picture.paste(thumbnail.resize((shape[0], shape[1]), way), (left, top))
        for number, text in enumerate(lines):
            ink = ("firebrick", "black", "gray")[min(number, 2)]
            while _width(text, 11) > side:
                text = f"{text[:-2]}…" if number < 2 else f"…{text[2:]}"  # a file's end tells it
            draw.text((left, top + side + 2 + line * number), text, ink, _font(11))
    _save(picture, path)


def _save(picture: Image.Image, path: Path) -> None:
    with written_whole(path) as partial:
        picture.save(partial, format="png")


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """matplotlib's own: PIL's has Latin letters only."""
    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)


def _width(text: str, size: int) -> int:
    return round(_font(size).getlength(text))


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _write_upward(picture: Image.Image, at: tuple[int, int], text: str, size: int) -> None:
    """Text that ends at the top, in the middle of its column."""
    line = Image.new("L", (_width(text, size) + 2, size + 6))
    ImageDraw.Draw(line).text((0, 0), text, 255, _font(size))
    turned = line.rotate(90, expand=True)
    corner = (at[0] - turned.width // 2, at[1] - turned.height)
    picture.paste(Image.new("RGB", turned.size, "black"), corner, turned)
