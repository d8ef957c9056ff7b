"""``python -m zoo predict FILE|FOLDER …``: the classes of unlabeled images."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zoo.cli.start import start
from zoo.commands import WEIGHTS_HELP
from zoo.core.files import written_whole
from zoo.core.options import Parser
from zoo.core.text import counted
from zoo.errors import UserError

Row = dict[str, Any]


def main(arguments: list[str]) -> int:
    if any(word.split("=")[0] in ("--recipe", "--config") for word in arguments):
        return start("predict", arguments)  # of the recipe's test images
    options = _parser().parse_args(arguments)
    for name in ("batch_size", "top", "mc"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise UserError(f"--{name} is {value}: it must be at least 1")

    from zoo.checkpoints.load import load
    from zoo.data.files import find_images
    from zoo.tasks.image_classifier import ImageClassifier

    task = load(options.weights)
    if not isinstance(task, ImageClassifier):
        raise UserError(
            f"predict writes class probabilities, and {type(task).__name__} has none: python -m "
            "zoo sample shows what it generates"
        )
    sets = None if options.sets is None else _sets(task, options.sets, options.weights)
    files, others = find_images(options.paths)
    rows = predict_files(task, files, options, sets)
    file = options.out or (None if options.json else Path("predictions.csv"))
    if file is not None:
        write_csv(rows, file)
    if options.json:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
    unreadable = [row for row in rows if "error" in row]
    _report(rows, others, file, sys.stderr if options.json else sys.stdout)
    return int(bool(unreadable))


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        "predict",
        "Predict the classes of image files and of folders of them. Exit code 1 where a file could "
        "not be read. With --recipe NAME in place of files, predict the recipe's test images "
        "(python -m zoo predict --recipe NAME --help).",
    )
    parser.add_argument("paths", type=Path, nargs="+", metavar="FILE|FOLDER")
    parser.add_argument("--weights", required=True, help=WEIGHTS_HELP)
    parser.add_argument("--out", type=Path, help="the CSV file; predictions.csv by default")
    parser.add_argument("--json", action="store_true", help="print JSON in place of the CSV file")
    parser.add_argument(
        "--top", type=int, default=5, help="classes of each image, most probable first"
    )
    parser.add_argument(
        "--mc",
        type=int,
        metavar="SAMPLES",
        help="samples of MC dropout: adds predictive entropy and mutual information",
    )
    parser.add_argument(
        "--sets",
        type=float,
        metavar="COVERAGE",
        help="prediction sets of this coverage, for example 0.95; needs calibrated weights",
    )
    add_reading_options(parser)
    return parser


def add_reading_options(parser: argparse.ArgumentParser) -> None:
    """Adds how image files are read: batch size, workers, background."""
    parser.add_argument("--batch_size", type=int, default=64, help="images per batch")
    parser.add_argument(
        "--workers", type=int, help="processes that decode images; by default all cores but one"
    )
    parser.add_argument(
        "--background", default="white", help="background color of transparent images"
    )


def _sets(task: Any, coverage: float, weights: str) -> Any:
    """The prediction sets that were fitted when the weights were published.

    Raises:
        UserError: none were, or not of this coverage.
    """
    from zoo.diagnostics.prediction_sets import PredictionSets

    known = task.calibration.get("sets", {}).get("aps", {})
    found = next((value for key, value in known.items() if float(key) == coverage), None)
    if found is None:
        raise UserError(
            f"--sets {coverage:g}: {weights} was calibrated for {', '.join(known)}: choose of these"
            if known
            else f"--sets: {weights} has no calibration: python -m zoo publish fits one"
        )
    return PredictionSets("aps", coverage, found)


def predict_files(task: Any, files: list[Any], options: Any, sets: Any = None) -> list[Row]:
    """Predicts each file, in order."""
    import torch

    from zoo.diagnostics.mc_dropout import mc_dropout

    classes = [str(name) for name in task.data_info.get("classes", [])]
    rows: dict[int, Row] = {}
    for batch, images in read(task, files, options):
        rows |= {index: {"error": reason} for index, reason in batch.unreadable.items()}
        if images is None:
            continue
        with torch.inference_mode():
            probabilities = task.predict_step(images, 0).cpu()
        # Of one forward with --mc, too: to its calibrated probabilities the sets were fitted.
        chosen = None if sets is None else sets(probabilities.double().log())
        spread = None
        if options.mc is not None:
            spread = mc_dropout(
                task.network, images, options.mc, task="multiclass", outputs="logits"
            )
            probabilities = spread.mean
        values, order = probabilities.topk(min(options.top, probabilities.shape[1]))
        for place, index in enumerate(batch.indices):
            ranked = zip(order[place].tolist(), values[place].tolist(), strict=True)
            rows[index] = {
                "classes": [
                    {"class": classes[number] if classes else str(number), "probability": share}
                    for number, share in ranked
                ]
            }
            if chosen is not None:
                rows[index]["set"] = [
                    classes[number] if classes else str(number)
                    for number in chosen[place].nonzero()[:, 0].tolist()
                ]
            if spread is not None:
                rows[index]["predictive_entropy"] = float(spread.entropy[place])
                rows[index]["mutual_information"] = float(spread.mutual_information[place])
    complete = []
    for index, file in enumerate(files):
        label = file.label(classes)
        known = {} if label is None else {"true_class": label}
        complete.append({"file": str(file.path), **known, **rows[index]})
    return complete


def read(task: Any, files: list[Any], options: Any) -> Iterator[tuple[Any, Any]]:
    """Reads image files in batches, with a progress bar on a terminal.

    Yields:
        The batch as it was decoded, and its images normalized (B, C, h, w) on the task's device,
        which is a GPU where there is one; None where nothing of it could be read.
    """
    import torch
    from rich.console import Console
    from rich.progress import track

    from zoo.data.files import decoded

    device = "cuda" if torch.cuda.is_available() else "cpu"
    task.to(device)
    transform = task.transform
    batches = decoded(files, transform, options.batch_size, options.workers, options.background)
    total = -(-len(files) // options.batch_size)
    console = Console(stderr=True)
    # Not console.is_terminal: Jupyter's FORCE_COLOR, for one, makes that true of any file.
    hidden = not sys.stderr.isatty()
    for batch in track(batches, "images", total, console=console, disable=hidden):
        yield batch, transform.normalize(batch.images.to(device)) if batch.indices else None


def write_csv(rows: list[Row], file: Path) -> None:
    """Writes a line for each file, the most probable class first."""
    most = max((len(row.get("classes", ())) for row in rows), default=0)
    extra = [
        name
        for name in ("true_class", "set", "predictive_entropy", "mutual_information", "error")
        if any(name in row for row in rows)
    ]
    heading = ["file"]
    for rank in range(1, most + 1):
        heading += [f"class_{rank}", f"probability_{rank}"]
    with (
        written_whole(file) as partial,
        partial.open("w", newline="", encoding="utf-8", errors="surrogateescape") as stream,
    ):
        writer = csv.writer(stream)
        writer.writerow([*heading, *extra])
        for row in rows:
            cells: list[Any] = [row["file"]]
            for one in row.get("classes", ()):
                cells += [one["class"], f"{one['probability']:.6f}"]
            cells += [""] * (len(heading) - len(cells))
            writer.writerow([*cells, *(_cell(row.get(name, "")) for name in extra)])


def _cell(value: Any) -> Any:
    if isinstance(value, list):
        return "; ".join(value)
    return f"{value:.6f}" if isinstance(value, float) else value


def _report(rows: list[Row], others: int, file: Path | None, stream: Any) -> None:
    """What was predicted, and what was left out."""
    read_ones = [row for row in rows if "error" not in row]
    lines = [f"images: {len(read_ones):,} of {counted(len(rows), 'file')}"]
    known = [row for row in read_ones if "true_class" in row]
    if known:
        right = sum(row["true_class"] == row["classes"][0]["class"] for row in known)
        lines.append(
            f"accuracy: {right / len(known):.2%} of the {len(known):,} whose folder names their "
            "class"
        )
    if others:
        lines.append(f"left out: {counted(others, 'file')} in folders without an image suffix")
    if file is not None:
        lines.append(f"predictions: {file}")
    print("\n".join(lines), file=stream)
    for row in rows:
        if "error" in row:
            print(f"not read: {row['error']}", file=sys.stderr)
