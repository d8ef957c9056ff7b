"""``python -m zoo publish RUN --name NAME``: a finished run becomes a shipped checkpoint."""

from __future__ import annotations

import json
import math
import shutil
import statistics
from pathlib import Path
from typing import Any

import yaml

from zoo import recipes
from zoo.commands import Parser
from zoo.errors import UserError

# What a run's run.json tells, and the checkpoint keeps.
RUN_FACTS = [
    "command",
    "date",
    "seed",
    "epochs",
    "steps",
    "wall_time_s",
    "resumed",
    "devices",
    "hardware",
    "versions",
]


def main(arguments: list[str]) -> int:
    parser = Parser("publish", "Measure a run's final weights and ship them with config and card.")
    parser.add_argument("run", type=Path, help="the run's folder, runs/RECIPE/VERSION")
    parser.add_argument("--name", required=True, help="the checkpoint's name, that of its recipe")
    parser.add_argument(
        "--seeds",
        type=Path,
        nargs="*",
        default=[],
        metavar="RUN",
        help="runs of the same recipe with other seeds: the card states mean and spread over all",
    )
    parser.add_argument(
        "--to", type=Path, default=None, help="the folder of checkpoints; the project's by default"
    )
    options = parser.parse_args(arguments)
    folder = publish(options.run, options.name, options.seeds, options.to)
    print(f"published: {folder}")
    return 0


def publish(run: Path, name: str, seeds: list[Path], to: Path | None = None) -> Path:
    """Measures the final weights of a run and writes ``TO/NAME``, whole or not at all.

    Args:
        run: the run's folder; its last epoch is shipped, never the best on validation data.
        name: of the checkpoint.
        seeds: further runs of the same recipe, for the card's mean.
        to: the folder of checkpoints.

    Raises:
        UserError: the run is not finished, trained on stand-in data, or could have.
    """
    from zoo import checkpoints
    from zoo.tasks.base import read_checkpoint

    facts, recipe = _read_run(run)
    _refuse_stand_in(run, facts, recipe)
    others = []
    for other in seeds:
        other_facts, other_recipe = _read_run(other)
        _refuse_stand_in(other, other_facts, other_recipe)
        if _essence(other_recipe) != _essence(recipe):
            raise UserError(f"{other} is a run of another recipe than {run}: the mean would lie")
        others.append(other_facts)

    file = run / "checkpoints" / "last.ckpt"
    content = read_checkpoint(file)
    task = checkpoints.load(file)
    metrics, counts, proof = _measure(task, recipe)
    root = to or recipes.shipped_folder("checkpoints")
    fresh = root / f".{name}.part"
    shutil.rmtree(fresh, ignore_errors=True)
    config = checkpoints.save(
        task,
        fresh,
        {
            "name": name,
            "headline": "test/accuracy",
            "metrics": metrics,
            "samples": counts,
            "proof": proof,
            "seeds": [
                {"seed": f["seed"], "metrics": f["metrics"], "wall_time_s": f["wall_time_s"]}
                for f in (facts, *others)
            ],
            "run": {key: facts[key] for key in RUN_FACTS},
            "global_step": int(content["global_step"]),
            "recipe": recipe,
        },
    )
    if (run / "curves.png").is_file():
        shutil.copy(run / "curves.png", fresh / "curves.png")
    checkpoints.write_text(fresh / checkpoints.CARD, card(config))
    target = root / name
    old = root / f".{name}.old"
    if target.exists():
        target.rename(old)
    fresh.rename(target)
    shutil.rmtree(old, ignore_errors=True)
    write_manifest(root)
    return target


def write_manifest(root: Path) -> None:
    """``MANIFEST.json``: sha256 of every file of every checkpoint below ``root``."""
    from zoo import checkpoints

    files = sorted(p for folder in root.glob("[!.]*/") for p in folder.iterdir() if p.is_file())
    digests = {file.relative_to(root).as_posix(): checkpoints.sha256(file) for file in files}
    checkpoints.write_json(root / checkpoints.MANIFEST, digests)


def _read_run(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    for name in ("run.json", "config.yaml", "checkpoints/last.ckpt"):
        if not (run / name).is_file():
            raise UserError(f"{run}: no {name}: it is not the folder of a finished fit")
    facts = json.loads((run / "run.json").read_text(encoding="utf-8"))
    recipe = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    return facts, recipe


def _refuse_stand_in(run: Path, facts: dict[str, Any], recipe: dict[str, Any]) -> None:
    if "instead_of" in facts["data"]:
        raise UserError(f"{run} was trained on {facts['data']['name']} as a stand-in: not shipped")
    if recipe["data"].get("init_args", {}).get("fallback") is not None:
        raise UserError(f"{run} could have fallen back: train it with --data.fallback null")


def _essence(recipe: dict[str, Any]) -> dict[str, Any]:
    """What must agree between two runs for their mean to mean something."""
    return {key: recipe[key] for key in ("model", "data")} | {
        "epochs": recipe["trainer"]["max_epochs"],
        "precision": recipe["trainer"]["precision"],
    }


def _measure(
    task: Any, recipe: dict[str, Any]
) -> tuple[dict[str, float], dict[str, int], dict[str, Any]]:
    """Metrics of the weights, in the precision they are loaded in (float32), counts, and proof."""
    from lightning.pytorch import Trainer

    from zoo import data
    from zoo.proof import prove

    section = recipe["data"]
    module = getattr(data, section["class_path"].rsplit(".", 1)[-1])(**section["init_args"])
    module.prepare_data()
    counts = module.sizes()
    if not counts["test"]:
        raise UserError(f"{module.name} has no test images: there is nothing to state")
    trainer = Trainer(logger=False, enable_progress_bar=False, enable_model_summary=False)
    metrics: dict[str, float] = {}
    for measure in (trainer.validate, trainer.test):
        (result,) = measure(task, datamodule=module, verbose=False)
        metrics.update(result)
    counts["val"] = counts.pop("validation")
    return {name: round(value, 6) for name, value in metrics.items()}, counts, prove(task, module)


def standard_error(accuracy: float, samples: int) -> float:
    """Of an accuracy measured on so many samples (binomial)."""
    return math.sqrt(accuracy * (1 - accuracy) / samples)


def card(config: dict[str, Any]) -> str:
    """A checkpoint's README.md, from its config.json alone."""
    run, data, metrics = config["run"], config["data"], config["metrics"]
    accuracy = metrics["test/accuracy"]
    error = standard_error(accuracy, config["samples"]["test"])
    network = config["network"]
    shape = " × ".join(str(size) for size in data["input_shape"])
    arguments = ", ".join(f"{k}={v!r}" for k, v in network["args"].items())
    over = [seed["metrics"]["test/accuracy"] for seed in config["seeds"]]
    lines = [
        f"# {config['name']}",
        "",
        f"`{network['name']}({arguments})`: {config['parameters']:,} parameters, trained on "
        f"{data['name']}.",
        "",
        "```python",
        "import zoo",
        "",
        f'model = zoo.load("{config["name"]}")  # in eval mode, sha256 verified',
        "logits = model(images)  # normalised by model.data['mean'] and model.data['std']",
        "```",
        "",
        "## Measured",
        "",
        "The final epoch's weights (their average, where the recipe has one), in float32, without "
        "test-time augmentation; nothing was chosen on test data.",
        "",
        "| images | accuracy | loss (nats) |",
        "|---|---|---|",
        f"| test ({config['samples']['test']:,}) | {accuracy:.2%} ± {error:.2%} (standard error) "
        f"| {metrics['test/loss']:.4f} |",
        f"| validation ({config['samples']['val']:,}) | {metrics['val/accuracy']:.2%} "
        f"| {metrics['val/loss']:.4f} |",
        "",
    ]
    if len(over) > 1:
        listed = ", ".join(
            f"{seed['metrics']['test/accuracy']:.2%} (seed {seed['seed']})"
            for seed in config["seeds"]
        )
        lines += [
            f"Mean of {len(over)} seeds, as `fit` tested them at its end: "
            f"**{statistics.mean(over):.2%}**, standard deviation {statistics.stdev(over):.2%}: "
            f"{listed}. The shipped weights are those of seed {run['seed']}.",
            "",
        ]
    lines += [
        "## Proof",
        "",
        *_proof(config),
        "",
        "## Trained",
        "",
        "```",
        run["command"],
        "```",
        "",
        f"- {run['epochs']} epochs, {run['steps']:,} steps, {run['wall_time_s'] / 60:.1f} minutes, "
        f"seed {run['seed']}, on {run['date']}",
        f"- {run['hardware']}",
        f"- {', '.join(f'{name} {version}' for name, version in run['versions'].items())}",
        f"- training images: {config['samples']['train']:,}; the resolved recipe, task and network "
        "are in `config.json`",
        "",
        "![Loss and accuracy by epoch](curves.png)",
        "",
        "## Input and output",
        "",
        f"Images ({shape}), scaled to [0, 1], then normalised by mean {data['mean']} and standard "
        f"deviation {data['std']}. Output: logits of {len(data['classes'])} classes, in this "
        f"order: {', '.join(data['classes'])}.",
        "",
        "## Limits",
        "",
        *_limits(config),
        "",
        "## Files",
        "",
        f"`model.safetensors` sha256 `{config['weights_sha256']}`. {_origin(config)}",
        "",
    ]
    return "\n".join(lines)


def _limits(config: dict[str, Any]) -> list[str]:
    name = config["data"]["name"]
    text = (
        f"It knows {name} and nothing else: whatever it is shown, it answers with one of its "
        f"{len(config['data']['classes'])} classes. Its probabilities are not calibrated"
    )
    if config["recipe"]["model"]["init_args"].get("label_smoothing"):
        text += ": label smoothing alone makes them too modest on such images, and on others they"
    else:
        text += "; on other images they"
    return [text + " mean nothing."]


def _origin(config: dict[str, Any]) -> str:
    """Whose the weights are."""
    network = config["recipe"]["model"]["init_args"]["network"]["init_args"]
    if network.get("pretrained"):
        return f"Training began from timm's weights of {network['name']}: their licence goes on."
    return "Weights: Apache-2.0, as the project; no weights from elsewhere went into them."


def _proof(config: dict[str, Any]) -> list[str]:
    """What audit, variance shift and uncertainty say, in a card's lines."""
    from zoo.commands.uncertainty import COLUMNS

    name, proof = config["name"], config["proof"]
    counts = ", ".join(f"{count} {severity}" for severity, count in proof["audit"].items())
    lines = [f"- `python -m zoo audit --recipe {name}`: {counts}."]
    if shift := proof["variance_shift"]:
        lines.append(
            f"- `zoo.variance_shift` over {shift['layers']} BatchNorm layers: the farthest from 1 "
            f"is `{shift['module']}`: {shift['ratio']:.3f} with dropout on to off, and its running "
            f"variance is {shift['running_ratio']:.3f} of that in evaluation, on images that are "
            "not augmented."
        )
    strangers = proof["strangers"]
    lines += [
        f"- `python -m zoo uncertainty --recipe {name}`"
        + (f" (strangers: {strangers}):" if strangers else ":"),
        "",
        f"| prediction | {' | '.join(COLUMNS.values())} |",
        "|---" * (1 + len(COLUMNS)) + "|",
    ]
    for way, scores in proof["uncertainty"].items():
        cells = []
        for key in COLUMNS:
            value = scores[key]
            cells.append(
                "-" if value is None else f"{value:{'.2%' if key == 'accuracy' else '.4f'}}"
            )
        lines.append(f"| {way} | {' | '.join(cells)} |")
    return lines
