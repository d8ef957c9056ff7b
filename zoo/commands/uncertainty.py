"""``python -m zoo uncertainty --weights X``: calibration, error and OOD detection."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from zoo.checkpoints.card import CALIBRATED_COLUMNS, COLUMNS, cell
from zoo.commands import add_weights_options, chosen_weights
from zoo.core.options import Parser
from zoo.core.text import counted
from zoo.errors import UserError

CORRUPTED_IMAGES = 2000  # of each kind and strength, unless --images says otherwise


def main(arguments: list[str]) -> int:
    parser = Parser(
        "uncertainty",
        "Measure the probabilities of trained weights before and after calibration, with MC "
        "dropout where the network has dropout, and as an ensemble: scores, calibration error, "
        "error detection, prediction sets, corrupted images and out-of-distribution images.",
    )
    add_weights_options(
        parser, "a recipe: its data, and its shipped weights unless others are given"
    )
    parser.add_argument("--samples", type=int, default=30, help="number of MC dropout samples")
    parser.add_argument("--drop-path", action="store_true", help="sample stochastic depth too")
    parser.add_argument(
        "--ensemble",
        nargs="+",
        default=[],
        metavar="RUN",
        help="further weights of the same classes (runs or checkpoints), the other members of an "
        "ensemble",
    )
    parser.add_argument("--split", choices=["test", "validation"], default="test")
    parser.add_argument(
        "--images", type=int, default=None, help="largest number of images of each kind"
    )
    parser.add_argument(
        "--ood",
        default="auto",
        help="out-of-distribution images: digits, FashionMNIST, auto or none",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of masks, sets and noise")
    parser.add_argument(
        "--to",
        type=Path,
        default=None,
        help="folder of the pictures; by default runs/RECIPE/uncertainty",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, for scripts")
    options = parser.parse_args(arguments)
    for name in ("samples", "images"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise UserError(f"--{name} is {value}: it must be at least 1")

    import torch

    from zoo.checkpoints.load import load
    from zoo.checkpoints.recorded import name_of
    from zoo.diagnostics import calibration, selective
    from zoo.diagnostics.held_out import labeled_logits
    from zoo.evaluation import calibrated
    from zoo.evaluation.classifier import (
        BATCH,
        Images,
        find_ood_images,
        has_dropout,
        predictors,
        uncertainty,
    )
    from zoo.evaluation.corruptions import draw_corrupted
    from zoo.tasks.image_classifier import ImageClassifier

    source = chosen_weights(options, "uncertainty")
    stem = Path(options.recipe).stem if options.recipe else name_of(source)
    task = load(source)
    if not isinstance(task, ImageClassifier):
        raise UserError(
            f"{source} is a {type(task).__name__}: uncertainty needs an image classifier"
        )
    data = _data(source, options.recipe)
    if task.data_info.get("name") != data.used.name:
        raise UserError(
            f"{source} was trained on {task.data_info.get('name')}, and these are {data.used.name}"
        )
    others = []
    for other in options.ensemble:
        member = load(other)
        if any(
            member.data_info.get(key) != task.data_info.get(key)
            for key in ("classes", "mean", "std")
        ):
            raise UserError(
                f"--ensemble {other}: trained on {member.data_info.get('name')}, with other "
                f"classes or normalization than {source}"
            )
        others.append(member.network)
    network, classes = task.network, list(data.used.classes)
    images = Images(data, options.split, options.images)
    ood = find_ood_images(options.ood, data, options.images)
    sampled = has_dropout(network, data.example_input()) or options.drop_path
    ways = predictors(
        network, options.samples if sampled else 0, options.drop_path, others, options.seed
    )
    rows: dict[str, dict[str, float | None]] = {}
    curves: dict[str, Any] = {}
    for name, predictor in ways.items():
        rows[name], known = uncertainty(predictor, images, ood[1] if ood else None)
        curves[name] = calibration.reliability(known.probabilities, known.labels)
    folder = options.to or Path("runs", stem, "uncertainty")
    title = f"{stem}, {options.split}"
    least, most = calibration.extremes(known.probabilities)
    calibration.draw_certainty(
        images.pick([*least, *most]),
        known.probabilities,
        known.labels,
        classes,
        folder / "certainty.png",
    )
    result: dict[str, Any] = {
        "recipe": stem,
        "weights": str(source),
        "data": data.used.name,
        "split": options.split,
        "images": len(known.labels),
        "out_of_distribution": ood[0] if ood else None,
        "seed": options.seed,
        "rows": rows,
    }
    pictures = ["reliability.png", "certainty.png"]
    fitted, origin = _fitted(task, Images(data, "validation"))
    if fitted is not None:
        logits, labels = labeled_logits("uncertainty", network, images)
        unknown = None
        if ood is not None:
            parts = torch.split(ood[1], BATCH)
            # Labels are asked for, and count for nothing here.
            batches = [(part, part.new_zeros(len(part)).long()) for part in parts]
            unknown, _ = labeled_logits("uncertainty", network, batches)
        probabilities = fitted.calibration(logits)
        scores = calibration.scores(probabilities, labels)
        found = calibrated.ood_scores(logits, unknown, fitted) if unknown is not None else None
        scores["auroc_ood"] = found["entropy, calibrated"] if found else None
        rows["calibrated"] = scores
        curves["calibrated"] = calibration.reliability(probabilities, labels)
        fewer = Images(data, options.split, options.images or CORRUPTED_IMAGES)
        result |= {
            "calibration": fitted.as_config(),
            "selective": calibrated.selective(logits, labels, fitted),
            "sets": {
                f"{name}, {calibrated.STATED:.0%}": calibrated.set_scores(
                    logits, labels, sets[calibrated.STATED], classes, options.seed
                )
                for name, sets in (("APS", fitted.aps), ("LAC", fitted.lac))
            },
            "corrupted": list(calibrated.corrupted(network, fewer, fitted, options.seed)),
            "ood_scores": found,
        }
        selective.draw_risk_coverage(
            calibrated.risk_curves(logits, labels, fitted), folder / "risk.png", title
        )
        draw_corrupted(_series(result["corrupted"]), folder / "corruption.png", title)
        pictures += ["risk.png", "corruption.png"]
    calibration.draw_reliability(curves, folder / "reliability.png", title)
    if options.json:
        print(json.dumps(result, indent=2))
        return 0
    print("\n".join(_report(result)))
    print(
        f"\n{counted(len(known.labels), f'{options.split} image')} of {data.used.name}"
        + (f"; out of distribution: {len(ood[1]):,} of {ood[0]}" if ood else "")
    )
    print(f"calibration: {origin}")
    if fitted is not None and options.split == "validation":
        print("The calibration was fitted to these images. Measure it on --split test.")
    if not sampled:
        print(f"{type(network).__name__} has no dropout: MC dropout does not apply to it")
    print(f"pictures: {', '.join(str(folder / picture) for picture in pictures)}")
    return 0


def _data(source: str | Path, recipe: str | None) -> Any:
    """The data of a recipe, or those on which weights were trained, as they record it."""
    from zoo.checkpoints.recorded import data_of
    from zoo.cli.building import from_recipe

    if recipe is None:
        return data_of(source)
    _, data = from_recipe(recipe)
    data.prepare_data()
    return data


def _fitted(task: Any, images: Any) -> tuple[Any, str]:
    """What the checkpoint keeps of its calibration, else a fit on validation images."""
    from zoo.evaluation import calibrated

    if task.calibration:
        return calibrated.Fitted.from_config(task.calibration), "as the checkpoint keeps it"
    try:
        fitted = calibrated.validation_fit(task.network, images)
    except UserError as error:
        return None, f"none ({error})"
    return fitted, f"fitted on {fitted.calibration.images:,} validation images"


def _series(corrupted: Iterable[dict[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Scores over strength, for the picture."""
    names = {"accuracy": "accuracy", "ece_before": "before", "ece_after": "calibrated"}
    found: dict[str, dict[str, list[float]]] = {}
    clean, *others = corrupted
    for row in others:
        of_kind = found.setdefault(row["kind"], {n: [clean[k]] for k, n in names.items()})
        for key, name in names.items():
            of_kind[name].append(row[key])
    return found


def _report(result: dict[str, Any]) -> list[str]:
    columns = {**COLUMNS, **CALIBRATED_COLUMNS}
    columns = {key: columns[key] for key in [*CALIBRATED_COLUMNS, *COLUMNS] if key != "aurc"}
    lines = table(
        ["", *columns.values()],
        [
            [name, *(cell(key, scores.get(key)) for key in columns)]
            for name, scores in result["rows"].items()
        ],
    )
    if "calibration" not in result:
        return lines
    lines += ["", *_selective_table(result), "", *_sets_table(result)]
    lines += ["", *_corrupted_table(result)]
    if result["ood_scores"]:
        scores = result["ood_scores"].items()
        rows = [[name, cell("auroc", value)] for name, value in scores]
        lines += ["", *table([f"detecting {result['out_of_distribution']} by", "AUROC"], rows)]
    return lines


def _selective_table(result: dict[str, Any]) -> list[str]:
    rows = [
        [
            name,
            f"{scores['aurc']:.5f}",
            f"{scores['coverage_at_1%']:.2%}",
            f"{scores['coverage_at_5%']:.2%}",
        ]
        for name, scores in result["selective"].items()
    ]
    return table(["predictions ranked by", "AURC", "coverage at 1 % risk", "at 5 % risk"], rows)


def _sets_table(result: dict[str, Any]) -> list[str]:
    sets = result["sets"]

    def both(scores: dict[str, float]) -> str:
        return f"{scores['coverage']:.2%} ({scores['size']:.2f})"

    rows = [["all", *(both(scores) for scores in sets.values())]]
    names = next(iter(sets.values()))["by_class"]
    for name in names:
        rows.append([name, *(both(scores["by_class"][name]) for scores in sets.values())])
    rows.append(["empty sets", *(f"{scores['empty']:.2%}" for scores in sets.values())])
    return table(["sets: coverage (mean size)", *sets], rows)


def _corrupted_table(result: dict[str, Any]) -> list[str]:
    keys = ["accuracy", "nll_before", "nll_after", "ece_before", "ece_after", "set_coverage"]
    titles = ["accuracy", "NLL", "calibrated", "ECE", "calibrated", "APS coverage", "size"]
    rows = [
        [
            f"{row['kind']} {row['strength'] or ''}",
            *(f"{row[k]:.2%}" if "acc" in k or "cov" in k else f"{row[k]:.4f}" for k in keys),
            f"{row['set_size']:.2f}",
        ]
        for row in result["corrupted"]
    ]
    return table(["corrupted images", *titles], rows)


def table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligns rows in columns: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    return [
        f"{row[0]:<{widths[0]}}"
        + "".join(f"  {text:>{width}}" for text, width in zip(row[1:], widths[1:], strict=True))
        for row in (titles, *rows)
    ]
