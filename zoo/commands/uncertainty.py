"""``python -m zoo uncertainty --recipe X``: what trained weights do not know, and how well."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from zoo.checkpoints.card import COLUMNS, cell
from zoo.commands import Parser, add_weights_options, chosen_weights
from zoo.errors import UserError


def main(arguments: list[str]) -> int:
    parser = Parser(
        "uncertainty",
        "Measure accuracy, NLL (nats), Brier score and calibration error of trained weights by one "
        "forward, by MC dropout where the network has dropout, and as an ensemble; and how well "
        "the entropy tells errors, and images of other things, from the rest.",
    )
    add_weights_options(parser, "the data, by default those of the weights")
    parser.add_argument("--samples", type=int, default=30, help="of MC dropout")
    parser.add_argument("--drop-path", action="store_true", help="sample stochastic depth too")
    parser.add_argument(
        "--ensemble",
        nargs="+",
        default=[],
        metavar="CKPT",
        help="further checkpoints of the same classes, to predict together",
    )
    parser.add_argument("--split", choices=["test", "validation"], default="test")
    parser.add_argument("--images", type=int, default=None, help="of each kind, at most")
    parser.add_argument(
        "--ood",
        default="auto",
        help="out-of-distribution images: digits, FashionMNIST, auto or none",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the masks")
    parser.add_argument(
        "--to", type=Path, default=None, help="folder of the pictures; runs/RECIPE/uncertainty"
    )
    parser.add_argument("--json", action="store_true", help="for scripts: one JSON object")
    options = parser.parse_args(arguments)
    for name in ("samples", "images"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise UserError(f"--{name} is {value}: it must be at least 1")

    from zoo.checkpoints.load import load
    from zoo.checkpoints.source import recipe_of
    from zoo.cli.building import from_recipe
    from zoo.cli.run_folder import recipe_name
    from zoo.diagnostics import calibration
    from zoo.evaluation.classifier import (
        Images,
        find_ood_images,
        has_dropout,
        predictors,
        uncertainty,
    )

    source = chosen_weights(options, "uncertainty")
    recipe = options.recipe or recipe_of(source)
    if recipe is None:
        raise UserError(f"{source} does not say which recipe trained it: give --recipe NAME")
    stem = recipe_name([recipe])
    task = load(source)
    _, data = from_recipe(recipe)
    data.prepare_data()
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
    images = Images(data, options.split, options.images)
    ood = find_ood_images(options.ood, data, options.images)
    network = task.network
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
    calibration.draw_reliability(curves, folder / "reliability.png", f"{stem}, {options.split}")
    least, most = calibration.extremes(known.probabilities)
    calibration.draw_certainty(
        images.pick([*least, *most]),
        known.probabilities,
        known.labels,
        data.used.classes,
        folder / "certainty.png",
    )
    result = {
        "recipe": stem,
        "weights": str(source),
        "data": data.used.name,
        "split": options.split,
        "images": len(known.labels),
        "out_of_distribution": ood[0] if ood else None,
        "seed": options.seed,
        "rows": rows,
    }
    if options.json:
        print(json.dumps(result, indent=2))
        return 0
    print("\n".join(table(rows)))
    print(
        f"\n{len(known.labels):,} {options.split} images of {data.used.name}"
        + (f"; out of distribution: {len(ood[1]):,} of {ood[0]}" if ood else "")
    )
    if not sampled:
        print(f"{type(network).__name__} has no dropout: MC dropout does not apply to it")
    print(f"pictures: {folder / 'reliability.png'}, {folder / 'certainty.png'}")
    return 0


def table(rows: dict[str, dict[str, float | None]]) -> list[str]:
    """The scores in columns."""
    width = max(len(name) for name in rows)
    lines = [" " * width + "".join(f"  {title:>{len(title)}}" for title in COLUMNS.values())]
    for name, scores in rows.items():
        cells = [f"  {cell(key, scores.get(key)):>{len(title)}}" for key, title in COLUMNS.items()]
        lines.append(f"{name:<{width}}" + "".join(cells))
    return lines
