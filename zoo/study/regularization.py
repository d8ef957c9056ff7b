"""The documents' eight experiments on what regularizes: run, judged, and reported as a page."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from zoo import recipes, registry
from zoo.checkpoints.load import load
from zoo.cli.app import ZooCLI
from zoo.cli.building import from_recipe
from zoo.cli.run_folder import fits_of
from zoo.core.files import is_file, write_json
from zoo.data.images import TRAINING_SAMPLE
from zoo.errors import UserError
from zoo.runs.callbacks import Curves
from zoo.runs.metrics import duration
from zoo.runs.record import is_finished, read_record
from zoo.study.progress import Display, quietly
from zoo.study.report import write_report
from zoo.study.runs import Run, read_run
from zoo.study.shift import measure_shift
from zoo.study.statements import judge_all

EXPERIMENTS = {
    1: "study/1_small",
    2: "study/2_medium",
    3: "study/3_augmentation",
    4: "study/4_batch_norm",
    5: "study/5_dropout",
    6: "study/6_batch_norm_dropout",
    7: "study/7_all",
    8: "study/8_large",
}
# What the documents did not try, in the same table: where dropout and BatchNorm stand, weight
# decay, and in a residual network dropout against stochastic depth.
BEYOND = {number: EXPERIMENTS[number] for number in (2, 4, 6)} | {
    9: "study/9_dropout_first",
    10: "study/10_dropout_last",
    11: "study/11_weight_decay",
    12: "study/12_norm_after_activation",
    13: "study/13_residual",
    14: "study/14_residual_dropout",
    15: "study/15_stochastic_depth",
}
BATCH = 250  # images, of which statistics are gathered at a time
STUDIES = {"regularization": EXPERIMENTS, "beyond": BEYOND}


@dataclass(frozen=True)
class Plan:
    """What is run, and what every table and picture of it says of that.

    Args:
        form: ``full`` or ``quick``: the folder of the results.
        label: in words.
        seeds: of each experiment.
        overrides: of every recipe, as on the command line.
        experiments: recipes by number.
        study: what of ``STUDIES`` this is: the folder around that of the form.
    """

    form: str
    label: str
    seeds: int
    overrides: tuple[str, ...] = ()
    experiments: Mapping[int, str] = field(default_factory=lambda: EXPERIMENTS)
    study: str = "regularization"


# The statements are about FashionMNIST, and no other data may stand in.
FULL = Plan(
    "full", "55,000 training images, 60 epochs", seeds=3, overrides=("--data.fallback", "null")
)
# 57,000 images are held out, of which 1,000 are looked at: the rest is a part to train on.
QUICK = Plan(
    "quick",
    "QUICK FORM: 3,000 training images in batches of 64, 20 epochs",
    seeds=1,
    overrides=(
        *FULL.overrides,
        *("--data.validation_size", "57000"),
        *("--data.batch_size", "64"),
        *("--trainer.limit_val_batches", "2"),
        *("--trainer.limit_test_batches", "4"),
        *("--trainer.max_epochs", "20"),
    ),
)


def run(study: str, quick: bool, seeds: int | None, out: Path, runs: Path) -> int:
    """Runs what is missing, and writes the report.

    Args:
        study: of ``STUDIES``.
        quick: the form of fewer images and epochs.
        seeds: of each experiment; by default 3, and 1 in quick form.
        out: folder of results and report, ``STUDY/FORM`` within it.
        runs: folder of checkpoints and logs.
    """
    plan = of_study(QUICK if quick else FULL, study)
    if seeds is not None:
        plan = replace(plan, seeds=seeds)
    found = measure(plan, out, runs)
    judged = judge_all(found)
    page = write_report(plan.label, plan.seeds, found, judged, folder_of(plan, out))
    for statement in judged:
        print(f"{statement.verdict:<15} {statement.sentence}")
        print("".join(f"{'':<16}{check}\n" for check in statement.checks), end="")
    print(f"report: {page}")
    return 0


def of_study(plan: Plan, study: str) -> Plan:
    return replace(plan, study=study, experiments=STUDIES[study])


def folder_of(plan: Plan, out: Path) -> Path:
    return out / plan.study / plan.form


def measure(plan: Plan, out: Path, runs: Path) -> dict[int, list[Run]]:
    """Every run of a plan: read where it is finished, else run or gone on with.

    Raises:
        UserError: a result was measured with other settings than the plan's.
    """
    wanted = [(number, seed) for seed in range(plan.seeds) for number in plan.experiments]
    epochs = {number: _epochs(plan, number) for number in plan.experiments}
    found: dict[int, list[Run]] = {number: [] for number in plan.experiments}
    with Display(sum(epochs[number] for number, _ in wanted)) as display:
        for number, seed in wanted:
            recipe = plan.experiments[number]
            name = f"{Path(recipe).stem}-seed{seed}"
            file = folder_of(plan, out) / f"{name}.json"
            display.name(name)
            if is_file(file):
                result = _known(file, plan, number)
                display.skip(epochs[number])
            else:
                result = _fit(plan, number, seed, runs / plan.study / plan.form, name, display)
                write_json(file, result.as_dict())
                display.line(f"{_line(result)}  {display.left}")
            found[number].append(result)
    return found


def known(plan: Plan, out: Path) -> dict[int, list[Run]]:
    """The finished runs of a plan, by experiment; those of which there is none are left out."""
    found = {}
    for number, recipe in plan.experiments.items():
        files = sorted(folder_of(plan, out).glob(f"{Path(recipe).stem}-seed*.json"))
        if files:
            found[number] = [read_run(file) for file in files]
    return found


def _epochs(plan: Plan, number: int) -> int:
    if "--trainer.max_epochs" in plan.overrides:
        return int(plan.overrides[plan.overrides.index("--trainer.max_epochs") + 1])
    return int(recipes.resolve(plan.experiments[number])["trainer"]["max_epochs"])


def _asked(plan: Plan, number: int) -> str:
    """A digest of all that a result depends on besides its seed."""
    recipe = recipes.resolve(plan.experiments[number])
    asked = [{k: v for k, v in recipe.items() if k != "about"}, list(plan.overrides)]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]


def _known(file: Path, plan: Plan, number: int) -> Run:
    result = read_run(file)
    if result.facts.get("asked") != _asked(plan, number):
        raise UserError(
            f"{file} was measured with other settings than {plan.experiments[number]} has now: "
            "give another --out, or remove it to measure it anew"
        )
    return result


def _line(result: Run) -> str:
    """A finished run in one line."""
    values = [
        f"{name} {result.final(name):.4f}"
        for name in ("train_eval/loss", "val/loss", "val/accuracy", "test/accuracy")
        if name in result.curves
    ]
    return f"{result.name}: {', '.join(values)} in {duration(result.facts['wall_time_s'])}"


class _Fit(ZooCLI):
    """``zoo fit``, which tells its progress to the study's display and draws no curves of its own.

    Drawn after every epoch, they take half a second of each: a tenth of an epoch of the quick form.
    """

    def __init__(self, arguments: list[str], display: Display) -> None:
        self.display = display
        super().__init__("fit", arguments)

    def _trainer_arguments(self, *arguments: Any) -> dict[str, Any]:
        settings = super()._trainer_arguments(*arguments)
        own = [each for each in settings["callbacks"] if not isinstance(each, Curves)]
        return {**settings, "callbacks": [*own, self.display]}


def _fit(plan: Plan, number: int, seed: int, runs: Path, name: str, display: Display) -> Run:
    arguments = ["--recipe", plan.experiments[number], *plan.overrides]
    arguments += ["--seed_everything", str(seed), "--runs", str(runs), "--name", name]
    arguments += ["--trainer.enable_progress_bar", "false"]
    arguments += ["--trainer.enable_model_summary", "false"]
    started = fits_of(runs / name)
    folder = started[-1] if started else None
    if folder is None or not is_finished(read_record(folder)):
        last = folder / "checkpoints" / "last.ckpt" if folder else None
        if last is not None and last.is_file():  # the study was killed in the middle of it
            arguments += ["--ckpt_path", last.as_posix()]
        with quietly(), contextlib.redirect_stdout(io.StringIO()):
            folder = _Fit(arguments, display).folder
    result = read_run(folder)
    images = _test_images(plan, result)
    facts = {**result.facts, "seed": seed, "form": plan.form, "asked": _asked(plan, number)}
    return replace(
        result,
        name=name,
        facts={**facts, "test_images": images},
        curves={**result.curves, **_shift(plan, number, folder, result)},
    )


def _shift(plan: Plan, number: int, folder: Path, result: Run) -> dict[str, list[float]]:
    """The variance shift of a trained network, on the fixed sample of clean training images."""
    network = load(folder / "checkpoints" / "last.ckpt").network
    _, data = from_recipe(plan.experiments[number], plan.overrides)
    limit = result.settings.get("trainer.limit_val_batches")
    training = islice(data.plain("train", BATCH), TRAINING_SAMPLE // BATCH)
    held_out = islice(data.plain("validation"), limit if isinstance(limit, int) else None)
    return measure_shift(
        network,
        [(data.normalize(images), labels) for images, labels in training],
        [(data.normalize(images), labels) for images, labels in held_out],
    )


def _test_images(plan: Plan, result: Run) -> int:
    """How many images the test accuracy is of."""
    settings = {k.removeprefix("data.init_args."): v for k, v in result.settings.items()}
    kind = registry.load(registry.DATA[str(settings["data.class_path"]).rsplit(".", 1)[-1]].data)
    count = int(kind().sizes()["test"])
    limit = result.settings.get("trainer.limit_test_batches")
    return min(count, limit * 500) if isinstance(limit, int) else count
