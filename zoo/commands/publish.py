"""``python -m zoo publish RUN --name NAME``: a finished run becomes a shipped checkpoint.

``python -m zoo publish --calibrate NAME`` calibrates a shipped classifier anew; its weights stay.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zoo import recipes
from zoo.core.files import is_file, read_json
from zoo.core.options import Parser
from zoo.core.schema import check
from zoo.core.text import first_line, shown
from zoo.errors import UserError

# What a run's run.json tells, and the checkpoint keeps.
RUN_FACTS = [
    "recipe",
    "command",
    "date",
    "seed",
    "epochs",
    "steps",
    "wall_time_s",
    "resumed",
    "devices",
    "precision",
    "hardware",
    "versions",
]

FACTS: dict[str, Any] = {
    "data": dict[str, Any],
    "metrics": dict[str, float],
    "seed": int | bool | None,
    "wall_time_s": float,
}
RECIPE: dict[str, Any] = {
    "model": dict[str, Any],
    "data": {"class_path": str, "init_args": dict[str, Any]},
    "trainer": {"max_epochs": int | None, "precision": str | int | None},
}


def main(arguments: list[str]) -> int:
    parser = Parser("publish", "Measure a run's final weights and ship them with config and card.")
    parser.add_argument(
        "run", type=Path, nargs="?", default=None, help="the run's folder, runs/RECIPE/VERSION"
    )
    parser.add_argument("--name", default=None, help="name of the checkpoint, usually the recipe's")
    parser.add_argument(
        "--calibrate",
        default=None,
        metavar="NAME",
        help="in place of a run: recalibrate this checkpoint on its validation images",
    )
    parser.add_argument(
        "--seeds",
        type=Path,
        nargs="*",
        default=[],
        metavar="RUN",
        help="runs of the same recipe with other seeds: the card states mean and spread over all",
    )
    parser.add_argument(
        "--temperatures",
        action="store_true",
        help="GAN: first choose a temperature for each class on training images",
    )
    parser.add_argument(
        "--to", type=Path, default=None, help="the folder of checkpoints; the project's by default"
    )
    parser.add_argument(
        "--push_to_hub",
        default=None,
        metavar="USER/NAME",
        help="upload the folder to Hugging Face's hub too (log in by `hf auth login` first)",
    )
    options = parser.parse_args(arguments)
    if options.calibrate is not None:
        if options.run or options.name or options.seeds or options.temperatures:
            raise UserError("--calibrate takes a checkpoint: give NAME and --to only")
        print(f"calibrated: {calibrate(options.calibrate, options.to)}")
        return 0
    if options.run is None or options.name is None:
        raise UserError("publish needs RUN --name NAME, or --calibrate NAME")
    if options.push_to_hub is not None:
        check_repository(options.push_to_hub)
    folder = publish(options.run, options.name, options.seeds, options.to, options.temperatures)
    print(f"published: {folder}")
    if options.push_to_hub is not None:
        print(f"uploaded: {push_to_hub(folder, options.push_to_hub)}")
    return 0


def publish(
    run: Path,
    name: str,
    seeds: list[Path],
    to: Path | None = None,
    temperatures: bool = False,
) -> Path:
    """Measures the final weights of a run and writes ``TO/NAME``, whole or not at all.

    Args:
        run: the run's folder; its last epoch is shipped, never the best on validation data.
        name: of the checkpoint.
        seeds: further runs of the same recipe, for the card's mean.
        to: the folder of checkpoints.
        temperatures: choose a GAN's (``zoo.evaluation.temperatures``) in place of the run's.

    Raises:
        UserError: the run is not finished, trained on stand-in data, or could have; or it makes no
            images for which a shipped reference classifier exists.
    """
    from zoo.checkpoints import store
    from zoo.checkpoints.card import card
    from zoo.checkpoints.load import load
    from zoo.checkpoints.recorded import data_module
    from zoo.commands.sample import draw_samples
    from zoo.core.files import write_text
    from zoo.evaluation.stated import measure
    from zoo.tasks.base import read_checkpoint
    from zoo.tasks.protocols import SamplesImages

    _check_name("--name", name)
    facts, recipe = _read_run(run)
    _refuse_stand_in(run, facts, recipe)
    others = []
    for other in seeds:
        other_facts, other_recipe = _read_run(other)
        _refuse_stand_in(other, other_facts, other_recipe)
        if _essence(other_recipe) != _essence(recipe):
            raise UserError(f"{other} is a run of another recipe than {run}")
        others.append(other_facts)

    file = run / "checkpoints" / "last.ckpt"
    content = read_checkpoint(file)
    task = load(file)
    data = data_module(recipe)
    if temperatures:
        _choose_temperatures(task, data, recipe)
    measured = measure(task, data)
    if temperatures:
        measured["judged"]["chosen"] = True
    root = to or recipes.shipped_folder("checkpoints")
    with _published_whole(root, name) as fresh:
        config = store.save(
            task,
            fresh,
            {
                "name": name,
                **({"shipped": False} if to is not None else {}),
                **measured,
                "seeds": [
                    {"seed": f["seed"], "metrics": f["metrics"], "wall_time_s": f["wall_time_s"]}
                    for f in (facts, *others)
                ],
                "run": {key: facts[key] for key in RUN_FACTS if key in facts},
                "global_step": content.get("global_step", 0),
                "recipe": recipe,
            },
        )
        if (run / "curves.png").is_file():
            shutil.copy(run / "curves.png", fresh / "curves.png")
        if isinstance(task, SamplesImages):
            draw_samples(task, name, fresh / "samples.png")
        write_text(fresh / store.CARD, card(config))
    return root / name


def calibrate(name: str, to: Path | None = None) -> Path:
    """Calibrates a checkpoint's classifier on its validation images; its weights are unchanged.

    Args:
        name: of the checkpoint.
        to: the folder of checkpoints.

    Returns:
        The checkpoint's folder.

    Raises:
        UserError: it is not a classifier, or its validation images allow no calibration.
    """
    from zoo.checkpoints import store
    from zoo.checkpoints.card import card
    from zoo.checkpoints.load import load
    from zoo.checkpoints.recorded import data_module
    from zoo.core.files import write_json, write_text
    from zoo.evaluation.classifier import calibrate_and_measure
    from zoo.tasks.image_classifier import ImageClassifier

    _check_name("--calibrate", name)
    root = to or recipes.shipped_folder("checkpoints")
    folder = root / name
    if not is_file(folder / store.CONFIG):
        raise UserError(f"--calibrate {name}: there is no checkpoint {folder}")
    task = load(folder)
    if not isinstance(task, ImageClassifier):
        raise UserError(f"--calibrate {name}: it is a {type(task).__name__}, not a classifier")
    config = read_json(folder / store.CONFIG)
    check(config, {"recipe": RECIPE, "proof": dict[str, Any]}, str(folder / store.CONFIG))
    kept, measured = calibrate_and_measure(task.network, data_module(config["recipe"]))
    config = {**config, "calibration": kept, "proof": {**config["proof"], "calibration": measured}}
    with _published_whole(root, name) as fresh:
        shutil.copytree(folder, fresh)
        write_json(fresh / store.CONFIG, config)
        write_text(fresh / store.CARD, card(config))
    return folder


def _check_name(option: str, name: str) -> None:
    if not name or name.startswith(".") or name != Path(name).name:
        raise UserError(f"{option} {shown(name)}: a folder's name, without / and no dot before it")


@contextmanager
def _published_whole(root: Path, name: str) -> Iterator[Path]:
    """A folder to fill; at the end it is ``ROOT/NAME``, and listed, and the former one is gone.

    The two change places in one step where the system can do that (Linux): killed at any time, the
    command leaves the former folder or the new one, whole.
    """
    from zoo.checkpoints import store
    from zoo.core.files import exchange, json_text, sha256, write_text

    fresh, target = root / f".{name}.part", root / name
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        yield fresh
        # Read before anything is renamed, so that little time lies between folder and list.
        listed = {file: sha256(path) for file, path in _files(root, {target: fresh})}
        if not target.exists():
            fresh.rename(target)
        elif not exchange(fresh, target):
            former = root / f".{name}.old"
            shutil.rmtree(former, ignore_errors=True)
            target.rename(former)
            fresh.rename(target)
            former.rename(fresh)
        write_text(root / store.MANIFEST, json_text(listed))
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _files(root: Path, instead: dict[Path, Path]) -> list[tuple[str, Path]]:
    """Every file of every checkpoint below ``root``, as the manifest names it, and where it lies.

    Args:
        root: the folder of checkpoints.
        instead: of a checkpoint's folder, the one that takes its place.
    """
    folders = {folder for folder in root.glob("[!.]*/") if folder.is_dir()} | set(instead)
    return sorted(
        (f"{folder.name}/{file.name}", file)
        for folder in folders
        for file in instead.get(folder, folder).iterdir()
        if file.is_file()
    )


def _read_run(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    from zoo.runs.record import is_finished

    for name in ("run.json", "config.yaml", "checkpoints/last.ckpt"):
        if not is_file(run / name):
            raise UserError(f"{run}: no {name}: it is not the folder of a finished fit")
    facts, recipe = read_json(run / "run.json"), recipes.read(run / "config.yaml")
    if isinstance(facts, dict) and not is_finished(facts):
        raise UserError(f"{run}: the fit is not finished (run.json: {facts.get('status')})")
    check(facts, FACTS, str(run / "run.json"))
    check(recipe, RECIPE, str(run / "config.yaml"))
    return facts, recipe


def _refuse_stand_in(run: Path, facts: dict[str, Any], recipe: dict[str, Any]) -> None:
    if "instead_of" in facts["data"]:
        raise UserError(
            f"{run} was trained on {facts['data']['name']} as a stand-in. Train it on "
            "the recipe's own data"
        )
    if recipe["data"].get("init_args", {}).get("fallback") is not None:
        raise UserError(f"{run} could have fallen back: train it with --data.fallback null")


def _essence(recipe: dict[str, Any]) -> dict[str, Any]:
    """What must agree between two runs for their mean to mean something."""
    return {key: recipe[key] for key in ("model", "data")} | {
        "epochs": recipe["trainer"]["max_epochs"],
        "precision": recipe["trainer"]["precision"],
    }


def _choose_temperatures(task: Any, data: Any, recipe: dict[str, Any]) -> None:
    from zoo.evaluation.generator import reference_classifier, temperatures
    from zoo.tasks.protocols import SamplesImages

    if not isinstance(task, SamplesImages):
        raise UserError(f"--temperatures is for a GAN, and the run is of {type(task).__name__}")
    gan: Any = task
    gan.temperature = temperatures(gan, data, reference_classifier(data))
    recipe["model"]["init_args"]["temperature"] = gan.temperature


def check_repository(name: str) -> None:
    """Refuses a name that is not a repository of the hub, before anything is measured."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"--push_to_hub {shown(name)}: {first_line(error)}") from None
    if name.count("/") != 1:
        raise UserError(f"--push_to_hub {shown(name)}: give USER/NAME")


def push_to_hub(folder: Path, name: str) -> str:
    """Uploads a published folder to Hugging Face's hub.

    Args:
        folder: weights, config and card.
        name: the repository, ``USER/NAME``; created where it does not exist.

    Returns:
        The address of the upload.

    Raises:
        UserError: there is no connection, or no permission.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(name, exist_ok=True)
        done = api.upload_folder(
            repo_id=name, folder_path=folder, commit_message=f"Add {folder.name}"
        )
    except Exception as error:  # huggingface_hub and its HTTP client have many
        raise UserError(
            f"{folder} is published, but was not uploaded to {name}: {first_line(error)}"
        ) from error
    return str(done.commit_url)
