"""Runs as the study and ``zoo compare`` see them: settings, curves and results, from files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zoo import recipes
from zoo.cli.run_folder import CONFIG_FILE, flat
from zoo.core.files import is_file, is_folder, read_json
from zoo.errors import UserError
from zoo.runs.metrics import METRICS_FILE, read_metrics, run_name
from zoo.runs.record import read_record

# Settings of which runs of one experiment are averaged.
REPEATED = ("seed_everything", "data.init_args.fold")
# Metrics of which more is better, by the end of their names.
MORE_IS_BETTER = ("accuracy", "macro_f1", "iou")


@dataclass(frozen=True)
class Run:
    """One fit.

    ``settings`` are those of its recipe with dots in their names; ``curves`` the values of each
    metric, the last of each epoch in which it was logged; ``facts`` what else its record says;
    ``path`` the file or folder that it was read from; ``logged_in`` the epochs, from 1, of each
    metric that some epochs have no value of.
    """

    name: str
    settings: Mapping[str, Any]
    curves: Mapping[str, list[float]]
    facts: Mapping[str, Any]
    path: Path = Path()
    logged_in: Mapping[str, list[int]] = field(default_factory=dict)

    @property
    def diverged(self) -> str:
        """What was not finite, and when; empty for a fit that reached its end."""
        return str(self.facts.get("diverged", ""))

    @property
    def epochs(self) -> int:
        """How many epochs it has run."""
        return max((self.epochs_of(name)[-1] for name, v in self.curves.items() if v), default=0)

    def epochs_of(self, metric: str) -> Sequence[int]:
        """The epochs, from 1, that the values of a metric are of."""
        count = len(self.curves[metric])
        return self.logged_in.get(metric, range(1, count + 1))[:count]

    def values(self, metric: str) -> list[float]:
        """The values of a metric, one for each epoch of ``epochs_of``.

        Raises:
            KeyError: it was not logged; the message names metric and run.
        """
        if not (found := self.curves.get(metric)):
            raise KeyError(f"{metric} of {self.name}")
        return found

    def final(self, metric: str) -> float:
        """The last value of a metric."""
        return self.values(metric)[-1]

    def best(self, metric: str) -> float:
        """The largest value where more is better, or the least of anything else."""
        values = self.values(metric)
        return max(values) if metric.endswith(MORE_IS_BETTER) else min(values)

    def epoch_of_best(self, metric: str) -> int:
        """The epoch, from 1, after which a metric was best."""
        return self.epochs_of(metric)[self.values(metric).index(self.best(metric))]

    @property
    def gap(self) -> float:
        """How far the loss of validation ends above that of clean training images."""
        return self.final("val/loss") - self.final("train_eval/loss")

    def as_dict(self) -> dict[str, Any]:
        """JSON values, with curves short enough to be committed."""
        curves = {
            name: [round(value, 5) for value in values] for name, values in self.curves.items()
        }
        shown = {**self.facts, "settings": dict(self.settings), "curves": curves}
        skipping = {"logged_in": dict(self.logged_in)} if self.logged_in else {}
        return {"name": self.name, **shown, **skipping}


def read_run(path: Path, may_be_empty: bool = False) -> Run:
    """A run from its folder, ``runs/RECIPE/VERSION``, or from a result of the study (JSON).

    Args:
        path: the folder or the file.
        may_be_empty: a run that ended before it logged anything is read, too.

    Raises:
        UserError: it is neither.
    """
    if is_file(path) and path.suffix == ".json":
        content = read_json(path)
        if not isinstance(content, dict) or not {"settings", "curves"} <= set(content):
            raise UserError(f"{path} is no result of the study: give a run's folder")
        name, settings, curves = content.get("name"), content["settings"], content["curves"]
        own, logged_in = ("name", "settings", "curves", "logged_in"), content.get("logged_in", {})
        facts = {key: value for key, value in content.items() if key not in own}
        return Run(str(name or path.stem), settings, curves, facts, path, logged_in)
    if not is_folder(path):
        raise UserError(f"{path}: no such run: give its folder, runs/RECIPE/VERSION")
    rows = read_metrics(path / METRICS_FILE)
    if not (rows or may_be_empty) or not is_file(path / CONFIG_FILE):
        raise UserError(
            f"{path} is no run: {CONFIG_FILE} and {METRICS_FILE} are expected in it (of a run in "
            "parts, give the newest version's folder)"
        )
    record = read_record(path)
    kept = ("recipe", "parameters", "wall_time_s", "hardware", "date", "status", "versions", "data")
    facts = {key: record[key] for key in kept if key in record}
    settings, (curves, logged_in) = flat(recipes.read(path / CONFIG_FILE)), _curves(rows)
    return Run(run_name(path), settings, curves, facts, path, logged_in)


def _curves(
    rows: Iterable[Mapping[str, float]],
) -> tuple[dict[str, list[float]], dict[str, list[int]]]:
    """Values by metric, the last of each epoch; and the epochs of those that skip some.

    A test follows the last epoch, and is of none.
    """
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        for name, value in row.items():
            if name not in ("step", "epoch"):
                tested = "test" in name.split("/")  # stand-in data come first: digits/test/loss
                epoch = 1 if tested else int(row.get("epoch", 0)) + 1
                found.setdefault(name, {})[epoch] = value
    epochs = {name: sorted(by) for name, by in found.items()}
    curves = {name: [by[epoch] for epoch in epochs[name]] for name, by in found.items()}
    return curves, {name: each for name, each in epochs.items() if each[-1] > len(each)}


def grouped(runs: Iterable[Run]) -> dict[str, list[Run]]:
    """Runs that differ in seed or fold alone, together, under the name of the first.

    Where several groups have the same name, each is called by as much of its path as tells them
    apart.
    """
    groups: list[tuple[dict[str, Any], list[Run]]] = []
    for run in runs:
        settings = {k: v for k, v in run.settings.items() if not is_free(k)}
        for known, members in groups:
            if known == settings:
                members.append(run)
                break
        else:
            groups.append((settings, [run]))
    names: dict[str, list[Run]] = {}
    firsts = [members[0] for _, members in groups]
    for first, (_, members) in zip(firsts, groups, strict=True):
        name = first.name
        same = [one.path.absolute() for one in firsts if one.name == name]
        if len(same) > 1:
            name = os.path.relpath(first.path, os.path.commonpath(same))
        if len(members) > 1:
            name += f" and {len(members) - 1} more"
        names[name] = members
    return names


def is_free(key: str) -> bool:
    """Whether a setting says where a run lies, or which repetition it is, and not what it does."""
    return key in (*REPEATED, "runs", "name", "ckpt_path", "wandb", "recipe", "config")
