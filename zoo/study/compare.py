"""Where runs differ: their settings, and their results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from zoo.checkpoints.card import form_of
from zoo.study.runs import Run, is_free
from zoo.study.verdicts import standard_error

Groups = Mapping[str, Sequence[Run]]
# What a run's record says beside metrics: label, key, divided by, form.
PLAIN = (("parameters", "parameters", 1, ",.0f"), ("minutes", "wall_time_s", 60, ".1f"))
DONE = "finished"  # the status of a run that reached its end
BEST = ", best (epoch)"  # is added to the name of a metric
GAP = "val/loss - train_eval/loss"


def different_settings(groups: Groups) -> dict[str, list[Any]]:
    """Settings that are not the same in all groups: a value for each group."""
    firsts = [runs[0].settings for runs in groups.values()]
    keys = sorted({key for settings in firsts for key in settings if not is_free(key)})
    values = {key: [settings.get(key) for settings in firsts] for key in keys}
    return {key: found for key, found in values.items() if any(v != found[0] for v in found)}


def results(groups: Groups) -> dict[str, list[str]]:
    """Final values of what was logged, mean ± standard error over a group's runs.

    The best value follows, with its epoch, of validation and of clean training images; and the gap
    between the losses of these.
    """
    names = {name for runs in groups.values() for run in runs for name in run.curves}
    rows: dict[str, list[str]] = {}
    members = list(groups.values())
    for name in sorted(names - {"lr"}):
        logged = [[run for run in runs if name in run.curves] for runs in members]
        rows[name] = [spread([run.final(name) for run in runs], name) for runs in logged]
        if {"val", "train_eval"} & set(name.split("/")):
            rows[name + BEST] = [_best(runs, name) for runs in logged]
    both = set(GAP.split(" - "))
    if both <= names:
        logged = [[run for run in runs if both <= run.curves.keys()] for runs in members]
        rows[GAP] = [spread([run.gap for run in runs], GAP) for runs in logged]
    status = [sorted({str(run.facts.get("status", DONE)) for run in runs}) for runs in members]
    if any(found != [DONE] for found in status):
        rows["status"] = [", ".join(found) for found in status]
    for label, key, scale, form in PLAIN:
        found = [[run.facts[key] / scale for run in runs if key in run.facts] for runs in members]
        rows[label] = [f"{mean(values):{form}}" if values else "-" for values in found]
    return rows


def _best(runs: Sequence[Run], metric: str) -> str:
    if not runs:
        return "-"
    epoch = mean(run.epoch_of_best(metric) for run in runs)
    return f"{spread([run.best(metric) for run in runs], metric)} ({epoch:.0f})"


def spread(values: Sequence[float], metric: str) -> str:
    """Mean ± standard error, ``91.20% ± 0.11%``; ``91.20%`` of one, ``-`` of none."""
    if not values:
        return "-"
    form = form_of(metric)
    error = standard_error(values)
    return f"{mean(values):{form}}" + ("" if error is None else f" ± {error:{form}}")


def table(heading: Sequence[str], rows: Mapping[str, Sequence[Any]]) -> list[str]:
    """Rows of cells in columns, for a terminal."""
    whole = [["", *heading], *([key, *map(str, cells)] for key, cells in rows.items())]
    widths = [max(map(len, column)) for column in zip(*whole, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in whole
    ]


def compared(groups: Groups) -> str:
    """What ``python -m zoo compare`` prints."""
    settings = different_settings(groups)
    names = list(groups)
    lines = ["settings that differ", *table(names, settings)] if settings else ["equal settings"]
    several = {name: len(runs) for name, runs in groups.items() if len(runs) > 1}
    lines += ["", "results of the final epoch" + (", mean ± standard error" if several else "")]
    lines += table(names, results(groups))
    return "\n".join(lines)
