"""The documents' eight experiments on what regularizes: run, judged, and reported as a page."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

from zoo import recipes
from zoo.checkpoints.load import load
from zoo.cli.app import ZooCLI
from zoo.cli.building import from_recipe
from zoo.cli.run_folder import fits_of, flat
from zoo.core.files import is_file, ready_folder, write_json
from zoo.core.locks import held
from zoo.data.images import TRAINING_SAMPLE
from zoo.errors import UserError
from zoo.runs.callbacks import Curves
from zoo.runs.metrics import duration
from zoo.runs.record import is_finished, read_record
from zoo.study.progress import Display, quietly
from zoo.study.report import PAGE, write_report
from zoo.study.runs import Run, read_run
from zoo.study.shift import measure_shift
from zoo.study.statements import Judged, judge_all

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
        runs: folder of checkpoints, logs and locks.
    """
    plan = of_study(QUICK if quick else FULL, study)
    if seeds is not None:
        plan = replace(plan, seeds=seeds)
    elsewhere = measure(plan, out, runs)
    for statement in report(plan, out, runs):
        print(f"{statement.verdict:<15} {statement.sentence}")
        print("".join(f"{'':<16}{check}\n" for check in statement.checks), end="")
        print(f"{'':<16}why: {statement.why}\n" if statement.why else "", end="")
    if is_file(page := out / plan.study / plan.form / PAGE):
        print(f"report: {page}")
    if elsewhere:
        print(
            f"another process was running {', '.join(elsewhere)}: when it has ended, run this "
            "command again for the whole report"
        )
    return 0


def report(plan: Plan, out: Path, runs: Path) -> list[Judged]:
    """Judges what is finished of a plan, and writes the report of it."""
    with held(runs / plan.study / plan.form / "report.lock", wait=True):
        found = finished(plan, out)
        judged = judge_all(found)
        if seeds := max(map(len, found.values())):
            write_report(plan.label, seeds, found, judged, out / plan.study / plan.form)
    return judged


def finished(plan: Plan, out: Path) -> dict[int, list[Run]]:
    """The runs that are judged: of each experiment the same seeds, as many as all of them have.

    Where an experiment has none yet, it is all runs that there are.
    """
    there = known(plan, out)
    seeds = min(map(len, there.values()))
    if not seeds:
        return there
    return {
        number: [run for run in members if run.facts["seed"] < seeds]
        for number, members in there.items()
    }


def of_study(plan: Plan, study: str) -> Plan:
    return replace(plan, study=study, experiments=STUDIES[study])


def folder_of(plan: Plan, number: int, root: Path) -> Path:
    """Where an experiment's results or fits are: what several studies have is the first's."""
    study = next(study for study, experiments in STUDIES.items() if number in experiments)
    return root / study / plan.form


def measure(plan: Plan, out: Path, runs: Path) -> list[str]:
    """Makes or goes on with every run of a plan that is not finished, and reports after each.

    Several processes share the runs: one that another process makes is left to it.

    Returns:
        Names of the runs that others were still making at the end.

    Raises:
        UserError: a result was measured with other settings than the plan's, or nothing can be
            written in ``out``.
    """
    ready_folder(out / plan.study / plan.form)
    wanted = {
        folder_of(plan, number, out) / f"{Path(recipe).stem}-seed{seed}.json": (number, seed)
        for seed in range(plan.seeds)
        for number, recipe in plan.experiments.items()
    }
    epochs = {number: _epochs(plan, number) for number in plan.experiments}
    for file, (number, _) in wanted.items():  # refused before hours are spent
        if is_file(file) and not _is_current(read_run(file), plan, number):
            raise UserError(
                f"{file} was measured with other settings than {plan.experiments[number]} has now: "
                "give another --out, or remove it to measure it anew"
            )
    elsewhere = []
    with Display(sum(epochs[number] for number, _ in wanted.values())) as display:
        for file, (number, seed) in wanted.items():
            fits, done = folder_of(plan, number, runs), display.done
            display.name(file.stem)
            if not is_file(file):
                with held(fits / f"{file.stem}.lock") as ours:
                    if not ours:
                        elsewhere.append(file)
                    elif not is_file(file):  # it was not finished just now
                        result = _fit(plan, number, seed, fits / file.stem, display)
                        facts = {"seed": seed, "form": plan.form, "asked": _asked(plan, number)}
                        facts = {**result.facts, **facts}
                        write_json(file, replace(result, name=file.stem, facts=facts).as_dict())
                        report(plan, out, runs)
                        display.line(f"{file.stem}: {_line(result)}  {display.left}")
            display.skip(done + epochs[number] - display.done)
    return [file.stem for file in elsewhere if not is_file(file)]


def known(plan: Plan, out: Path) -> dict[int, list[Run]]:
    """The finished runs of a plan with its present settings, by experiment and of any seed."""
    found = {}
    for number, recipe in plan.experiments.items():
        files = folder_of(plan, number, out).glob(f"{Path(recipe).stem}-seed*.json")
        current = [run for run in map(read_run, files) if _is_current(run, plan, number)]
        found[number] = sorted(current, key=lambda run: run.facts["seed"])
    return found


def _epochs(plan: Plan, number: int) -> int:
    if "--trainer.max_epochs" in plan.overrides:
        return int(plan.overrides[plan.overrides.index("--trainer.max_epochs") + 1])
    return int(recipes.resolve(plan.experiments[number])["trainer"]["max_epochs"])


def _asked(plan: Plan, number: int) -> str:
    """A digest of all that a result depends on besides its seed: the recipe as it is overridden."""
    recipe = flat(recipes.resolve(plan.experiments[number]))
    asked = {k.replace("init_args.", ""): v for k, v in recipe.items() if k[:6] != "about."}
    names, values = plan.overrides[::2], plan.overrides[1::2]
    asked |= {name.removeprefix("--"): value for name, value in zip(names, values, strict=True)}
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]


def _is_current(result: Run, plan: Plan, number: int) -> bool:
    return result.facts.get("asked") == _asked(plan, number)


def _line(result: Run) -> str:
    """What became of a run, in one line."""
    if result.diverged:
        return f"diverged ({result.diverged})"
    values = [
        f"{name} {result.final(name):.4f}"
        for name in ("train_eval/loss", "val/loss", "val/accuracy", "test/accuracy")
        if name in result.curves
    ]
    return f"{', '.join(values)} in {duration(result.facts['wall_time_s'])}"


class _Fit(ZooCLI):
    """``zoo fit``, which tells its progress to the study's display and draws no curves of its own.

    Drawn after every epoch, they take half a second of each: a tenth of an epoch of the quick form.
    The run's record has the digest of what was asked.
    """

    def __init__(self, arguments: list[str], asked: str, display: Display) -> None:
        self.asked, self.display = asked, display
        super().__init__("fit", arguments)

    def _trainer_arguments(self, *arguments: Any) -> dict[str, Any]:
        settings = super()._trainer_arguments(*arguments)
        own = [each for each in settings["callbacks"] if not isinstance(each, Curves)]
        return {**settings, "callbacks": [*own, self.display]}

    def _facts(self, changed: dict[str, Any]) -> dict[str, Any]:
        return {**super()._facts(changed), "asked": self.asked}


def _fit(plan: Plan, number: int, seed: int, runs: Path, display: Display) -> Run:
    """Runs an experiment, or goes on with a run of the same settings; one may diverge."""
    recipe, asked = plan.experiments[number], _asked(plan, number)
    arguments = ["--recipe", recipe, *plan.overrides, "--seed_everything", str(seed)]
    arguments += ["--runs", str(runs.parent), "--name", runs.name]
    # On several GPUs a batch would be several times as large.
    arguments += ["--trainer.devices", "1"]
    arguments += ["--trainer.enable_progress_bar", "false"]
    arguments += ["--trainer.enable_model_summary", "false"]
    folder, diverged = _newest(runs, asked), ""
    if folder is None or not is_finished(read_record(folder)):
        last = folder / "checkpoints" / "last.ckpt" if folder else None
        if last is not None and last.is_file():  # the study was killed in the middle of it
            arguments += ["--ckpt_path", last.as_posix()]
        try:
            with quietly(), contextlib.redirect_stdout(io.StringIO()):
                folder = _Fit(arguments, asked, display).folder
        except UserError as error:
            folder = _newest(runs, asked)
            if folder is None or "the training loss is" not in str(error):
                raise
            diverged = str(error)
    result = read_run(folder, may_be_empty=bool(diverged))
    curves = {k: list(takewhile(math.isfinite, v)) for k, v in result.curves.items()}
    cut = [name for name, values in curves.items() if len(values) < len(result.curves[name])]
    if cut and not diverged:
        epoch = result.epochs_of(cut[0])[len(curves[cut[0]])]
        diverged = f"{cut[0]} is not finite at epoch {epoch}"
    if diverged:
        curves = {name: values for name, values in curves.items() if values}
        return replace(result, facts={**result.facts, "diverged": diverged}, curves=curves)
    _, data = from_recipe(recipe, plan.overrides)
    return replace(
        result,
        facts={**result.facts, **_images(data, result)},
        curves={**curves, **_shift(data, folder, result)},
    )


def _newest(runs: Path, asked: str) -> Path | None:
    """The newest of the runs of these settings; a run of others is let be."""
    started = reversed(fits_of(runs))
    return next((each for each in started if read_record(each).get("asked") == asked), None)


def _shift(data: Any, folder: Path, result: Run) -> dict[str, list[float]]:
    """The variance shift of a trained network, on the fixed sample of clean training images."""
    network = load(folder / "checkpoints" / "last.ckpt").network
    limit = result.settings.get("trainer.limit_val_batches")
    training = islice(data.plain("train", BATCH), TRAINING_SAMPLE // BATCH)
    held_out = islice(data.plain("validation"), limit if isinstance(limit, int) else None)
    return measure_shift(
        network,
        [(data.normalize(images), labels) for images, labels in training],
        [(data.normalize(images), labels) for images, labels in held_out],
    )


def _images(data: Any, result: Run) -> dict[str, int]:
    """How many images the accuracies in validation and test are of."""
    counts = {}
    for name, split in (("validation_images", "val"), ("test_images", "test")):
        limit = result.settings.get(f"trainer.limit_{split}_batches")
        size = data.sizes()[split]
        counts[name] = min(size, limit * 500) if isinstance(limit, int) else size
    return counts
