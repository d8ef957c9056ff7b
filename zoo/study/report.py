"""The study's report: one HTML page with everything in it, and the same as Markdown with PNGs."""

from __future__ import annotations

import base64
import html
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

from zoo.core.files import write_text
from zoo.core.pictures import save_figure
from zoo.core.text import counted
from zoo.study.pictures import draw_panels
from zoo.study.runs import Run
from zoo.study.shift import ACCURACY, LOSS, REPAIRED, RUNNING, SHIFT
from zoo.study.statements import Judged

TITLE = "What regularizes: experiments on FashionMNIST"
NAMES = {
    1: "small",
    2: "medium, nothing",
    3: "+ augmentation",
    4: "+ BatchNorm",
    5: "+ dropout",
    6: "BatchNorm, dropout",
    7: "all three",
    8: "large, all three",
    9: "dropout before BatchNorm",
    10: "dropout after the last",
    11: "weight decay",
    12: "BatchNorm after the activation",
    13: "residual",
    14: "residual, dropout",
    15: "residual, stochastic depth",
}
COLUMNS = (
    "experiment",
    "parameters",
    "training loss, final",
    "validation loss, best (epoch) → final",
    "gap (nats)",
    "training accuracy, final",
    "validation accuracy, best → final",
    "test accuracy ± standard error",
)
SHIFT_COLUMNS = (
    "experiment",
    "variance, dropout on / off",
    "running / evaluation → re-estimated",
    "validation loss → re-estimated",
    "validation accuracy → re-estimated",
)
SHIFT_TITLE = "What dropout does to BatchNorm"
SHIFT_TEXT = (
    "Ratios of variances of the input of the worst BatchNorm, on clean training images (at "
    "most 5,000); 1 is no shift. Re-estimated: running statistics from the same images with "
    "dropout off (zoo.recalibrate), the weights as they were. Means over seeds."
)
# What marks a verdict, besides its color, in grey.
SIGNS = {"reproduced": "✓", "within noise": "≈", "not reproduced": "✗", "one seed": "·"}
STYLE = """
body { font: 17px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: .35em .7em; border-bottom: 1px solid #bbb; text-align: right; }
td:first-child, th:first-child { text-align: left; }
img { width: 100%; } .label { background: #fff3cd; padding: .4em .8em; }
li { margin-bottom: .9em; } .check { color: #444; font-size: 15px; }
.reproduced { color: #00614b; } .not-reproduced { color: #a33c00; } b { white-space: nowrap; }
"""


def name_of(number: int) -> str:
    return f"{number} {NAMES.get(number, '')}".strip()


@dataclass(frozen=True)
class Table:
    """Rows of cells under a heading, with what a reader must know of them."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    text: str


def write_report(
    label: str,
    seeds: int,
    runs: Mapping[int, Sequence[Run]],
    judged: Sequence[Judged],
    folder: Path,
) -> Path:
    """Writes ``index.html``, ``README.md`` and two pictures.

    Args:
        label: what form of the study this is; every table and picture states it.
        seeds: of each experiment.
        runs: by the experiment's number, one a seed.
        judged: the statements with their verdicts.
        folder: where they go.

    Returns:
        The page.
    """
    label += f", {counted(seeds, 'seed')}"
    groups = {name_of(number): members for number, members in runs.items()}
    pictures = {}
    for kind, message in (("loss", "who overfits"), ("accuracy", "who generalizes")):
        pictures[kind] = folder / f"{kind}.png"
        title = f"The gap between the lines shows {message} ({label}; bands: ± 1 s over seeds)"
        save_figure(draw_panels(groups, kind, title), pictures[kind])
    rows = [row_of(number, members) for number, members in runs.items()]
    tables = [Table("", COLUMNS, rows, "Training is of clean images in evaluation mode.")]
    if shifts := [shift_row(n, m) for n, m in runs.items() if SHIFT in m[0].curves]:
        tables.append(Table(SHIFT_TITLE, SHIFT_COLUMNS, shifts, SHIFT_TEXT))
    facts = next(iter(runs.values()))[0].facts
    form = "--quick " if str(facts.get("form")) == "quick" else ""
    command = f"python -m zoo study {folder.parent.name} {form}--seeds {seeds}"
    total = sum(run.facts.get("wall_time_s", 0.0) for members in runs.values() for run in members)
    made = (
        f"Measured with `{command}` on {facts.get('hardware', 'unknown hardware')}, "
        f"{facts.get('date', time.strftime('%Y-%m-%d'))}, "
        f"{counted(round(total / 60), 'minute')} of fitting."
    )
    write_text(folder / "README.md", _markdown(label, tables, judged, pictures, made))
    page = folder / "index.html"
    write_text(page, _page(label, tables, judged, pictures, made))
    return page


def row_of(number: int, runs: Sequence[Run]) -> list[str]:
    """The cells of an experiment, means over its seeds."""

    def over(metric: str) -> str:
        return f"{mean(run.final(metric) for run in runs):.4f}"

    best = mean(run.best("val/loss") for run in runs)
    epoch = mean(run.epoch_of_best("val/loss") for run in runs)
    gap = mean(run.final("val/loss") - run.final("train_eval/loss") for run in runs)
    accuracy = mean(run.best("val/accuracy") for run in runs)
    return [
        name_of(number),
        f"{runs[0].facts.get('parameters', 0):,}",
        over("train_eval/loss"),
        f"{best:.4f} ({epoch:.0f}) → {over('val/loss')}",
        f"{gap:+.4f}",
        over("train_eval/accuracy"),
        f"{accuracy:.4f} → {over('val/accuracy')}",
        tested(runs),
    ]


def shift_row(number: int, runs: Sequence[Run]) -> list[str]:
    """The cells of an experiment with BatchNorm in the second table."""

    def change(before: str, after: str, form: str) -> str:
        values = (mean(run.final(metric) for run in runs) for metric in (before, after))
        return " → ".join(f"{value:{form}}" for value in values)

    return [
        name_of(number),
        f"{mean(run.final(SHIFT) for run in runs):.3f}",
        change(RUNNING, REPAIRED, ".3f"),
        change("val/loss", LOSS, ".4f"),
        change("val/accuracy", ACCURACY, ".4f"),
    ]


def tested(runs: Sequence[Run]) -> str:
    """Test accuracy with its standard error: over seeds, or of one seed over images."""
    values = [run.final("test/accuracy") for run in runs]
    if len(values) > 1:
        return f"{mean(values):.4f} ± {stdev(values) / math.sqrt(len(values)):.4f} (seeds)"
    images = runs[0].facts["test_images"]
    return f"{values[0]:.4f} ± {math.sqrt(values[0] * (1 - values[0]) / images):.4f} (images)"


def _markdown(
    label: str,
    tables: Sequence[Table],
    judged: Sequence[Judged],
    pictures: Mapping[str, Path],
    made: str,
) -> str:
    lines = [f"# {TITLE}", "", f"**{label}.** {made}", ""]
    for table in tables:
        lines += [f"## {table.title}", ""] if table.title else []
        lines += ["| " + " | ".join(table.columns) + " |", "|---" * len(table.columns) + "|"]
        lines += ["| " + " | ".join(row) + " |" for row in table.rows]
        lines += ["", f"{table.text} {label}.", ""]
    lines += [f"![{kind} over epochs, {label}]({path.name})" for kind, path in pictures.items()]
    lines += ["", "## What the documents say, and what was measured", ""]
    lines += [RULE, ""]
    for one in judged:
        lines += [f"- ({one.experiment}) {one.sentence} **{SIGNS[one.verdict]} {one.verdict}**"]
        lines += [f"  - {check}" for check in one.checks]
    return "\n".join(lines) + "\n"


RULE = (
    "Each line is a difference that is positive where it is as stated, ± twice its standard error "
    "over seeds. Reproduced: it exceeds that; within noise: it does not; not reproduced: it has "
    "the other sign and exceeds it. One seed has no spread, and no verdict."
)


def _page(
    label: str,
    tables: Sequence[Table],
    judged: Sequence[Judged],
    pictures: Mapping[str, Path],
    made: str,
) -> str:
    def cells(tag: str, row: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"

    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width'>",
        f"<title>What regularizes</title><style>{STYLE}</style>",
        f"<h1>{TITLE}</h1>",
        f"<p class=label><b>{html.escape(label)}.</b> {html.escape(made)}</p>",
    ]
    for table in tables:
        parts += [f"<h2>{table.title}</h2>"] if table.title else []
        parts += ["<table>", cells("th", table.columns)]
        parts += [cells("td", row) for row in table.rows]
        parts += [f"</table><p>{html.escape(f'{table.text} {label}.')}</p>"]
    for kind, path in pictures.items():
        content = base64.b64encode(path.read_bytes()).decode()
        parts.append(f"<img alt='{kind} over epochs' src='data:image/png;base64,{content}'>")
    parts += ["<h2>What the documents say, and what was measured</h2>", f"<p>{RULE}</p><ol>"]
    for one in judged:
        kind = one.verdict.replace(" ", "-")
        checks = "".join(f"<div class=check>{html.escape(str(c))}</div>" for c in one.checks)
        parts.append(
            f"<li value={one.experiment}>{html.escape(one.sentence)} "
            f"<b class={kind}>{SIGNS[one.verdict]} {one.verdict}</b>{checks}</li>"
        )
    return "\n".join([*parts, "</ol></html>"]) + "\n"
