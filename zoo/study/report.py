"""The study's report: one HTML page with everything in it, and the same as Markdown with PNGs."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from zoo.checkpoints.card import standard_error
from zoo.core.files import write_text
from zoo.core.pictures import save_figure
from zoo.core.text import counted, inline_html
from zoo.study.compare import BEST, GAP, Groups, results, spread
from zoo.study.pictures import draw_panels
from zoo.study.runs import Run
from zoo.study.shift import ACCURACY, LOSS, REPAIRED, RUNNING, SHIFT
from zoo.study.statements import IN_NUMBERS, Judged

PAGE = "report.html"  # beside README.md, of which a site makes index.html
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
TEST = "test/accuracy"
# Headings, and the rows of zoo.study.compare that stand under them.
LOSSES = {
    "parameters": "parameters",
    "training, best (epoch)": f"train_eval/loss{BEST}",
    "training, final": "train_eval/loss",
    "validation, best (epoch)": f"val/loss{BEST}",
    "validation, final": "val/loss",
    "gap": GAP,
}
ACCURACIES = {
    "training, best (epoch)": f"train_eval/accuracy{BEST}",
    "training, final": "train_eval/accuracy",
    "validation, best (epoch)": f"val/accuracy{BEST}",
    "validation, final": "val/accuracy",
    "test": TEST,
}
TEXT = (
    "Training is of clean images in evaluation mode. Means ± standard errors over seeds; of one "
    "seed's test accuracy over images."
)
SHIFTS = {
    "variance, dropout on / off": SHIFT,
    "running / evaluation": RUNNING,
    "re-estimated": REPAIRED,
    "validation loss": "val/loss",
    "loss, re-estimated": LOSS,
    "validation accuracy": "val/accuracy",
    "accuracy, re-estimated": ACCURACY,
}
SHIFT_TITLE = "What dropout does to BatchNorm"
SHIFT_TEXT = (
    "Ratios of variances of the input of the worst BatchNorm, on clean training images (at "
    "most 5,000); 1 is no shift. Re-estimated: running statistics from the same images with "
    "dropout off (zoo.recalibrate), the weights as they were. Means ± standard errors over seeds."
)
# What marks a verdict, besides its color, in grey.
SIGNS = {
    "reproduced": "✓",
    "within noise": "≈",
    "not reproduced": "✗",
    "one seed": "·",
    "not run": "–",
    "not judged": "–",
}
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
    """Writes ``report.html``, ``README.md`` and two pictures.

    Args:
        label: what form of the study this is; every table and picture states it.
        seeds: of each experiment.
        runs: by the experiment's number, one a seed.
        judged: the statements with their verdicts.
        folder: where they go.

    Returns:
        The page.
    """
    every = [run for members in runs.values() for run in members]
    label += f", {counted(seeds, 'seed')}"
    if len(every) < seeds * len(runs):
        label += f", {len(every)} of {seeds * len(runs)} runs"
    groups = groups_of(runs)
    pictures = {}
    bands = "; bands: ± one standard deviation over seeds" if seeds > 1 else ""
    for kind, message in (("loss", widest_gap(groups)), ("accuracy", most_accurate(groups))):
        pictures[kind] = folder / f"{kind}.png"
        save_figure(draw_panels(groups, kind, f"{message}\n{label}{bands}"), pictures[kind])
    tables = [
        table_of("Loss (nats)", LOSSES, TEXT, groups),
        table_of("Accuracy", ACCURACIES, TEXT, groups),
    ]
    if shifted := {n: m for n, m in groups.items() if any(SHIFT in run.curves for run in m)}:
        tables.append(table_of(SHIFT_TITLE, SHIFTS, SHIFT_TEXT, shifted))
    form = "--quick " if folder.name == "quick" else ""
    command = f"python -m zoo study {folder.parent.name} {form}--seeds {seeds}"
    total = sum(run.facts.get("wall_time_s", 0.0) for run in every)
    hardware = sorted({str(run.facts.get("hardware", "unknown hardware")) for run in every})
    dates = [str(run.facts.get("date", "unknown date")) for run in every]
    made = (
        f"Measured with `{command}` on {'; '.join(hardware)}, "
        f"{' to '.join(sorted({min(dates), max(dates)}))}, "
        f"{counted(round(total / 60), 'minute')} of fitting."
    )
    rule = _rule(every)
    write_text(folder / "README.md", _markdown(label, tables, judged, pictures, made, rule))
    page = folder / PAGE
    write_text(page, _page(label, tables, judged, pictures, made, rule))
    return page


def widest_gap(groups: Groups) -> str:
    """The message of the losses: the widest gap, and the narrowest."""
    gaps = {
        name: mean(run.gap for run in runs)
        for name, runs in groups.items()
        if all(run.curves.get("val/loss") and run.curves.get("train_eval/loss") for run in runs)
    }
    if not gaps:
        return "Training and validation loss"
    most, least = max(gaps, key=lambda name: gaps[name]), min(gaps, key=lambda name: gaps[name])
    return (
        f"Validation loss ends {gaps[most]:.2f} nats above training loss in “{most}”, and "
        f"{gaps[least]:.2f} in “{least}”"
    )


def most_accurate(groups: Groups) -> str:
    """The message of the accuracies: who is best on validation images, and who is worst."""
    found = {
        name: mean(run.final("val/accuracy") for run in runs)
        for name, runs in groups.items()
        if all(run.curves.get("val/accuracy") for run in runs)
    }
    if not found:
        return "Training and validation accuracy"
    best, worst = max(found, key=lambda name: found[name]), min(found, key=lambda name: found[name])
    return f"Best in validation: {best} ({found[best]:.1%}); worst: {worst} ({found[worst]:.1%})"


def groups_of(runs: Mapping[int, Sequence[Run]]) -> dict[str, list[Run]]:
    """Experiments by what they are called in tables and pictures, without the runs that diverged.

    Where all of them did, they are shown as far as they went.
    """
    groups = {}
    for number, members in runs.items():
        fine = [run for run in members if not run.diverged]
        name = name_of(number)
        if len(fine) < len(members):
            name += f" (diverged: {len(members) - len(fine)} of {len(members)})"
        if members:
            groups[name] = fine or list(members)
    return groups


def table_of(title: str, columns: Mapping[str, str], text: str, groups: Groups) -> Table:
    """A table of what ``zoo.study.compare`` knows, by heading; a row for each group."""
    found = results(groups)
    if TEST in found:
        found[TEST] = [tested(runs) for runs in groups.values()]
    cells = [found.get(row, ["-"] * len(groups)) for row in columns.values()]
    return Table(title, ["experiment", *columns], [*zip(groups, *cells, strict=True)], text)


def tested(runs: Sequence[Run]) -> str:
    """Test accuracy with its standard error: over seeds, or of one seed over images."""
    values = [run.final(TEST) for run in runs if TEST in run.curves]
    if len(values) != 1:
        return spread(values, TEST)
    error = standard_error(values[0], runs[0].facts["test_images"])
    return f"{values[0]:.2%} ± {error:.2%} (images)"


def _markdown(
    label: str,
    tables: Sequence[Table],
    judged: Sequence[Judged],
    pictures: Mapping[str, Path],
    made: str,
    rule: str,
) -> str:
    lines = [
        f"# {TITLE}",
        "",
        f"**{label}.** {made} The same as one page to show: [{PAGE}]({PAGE}).",
        "",
    ]
    lines += [f"![{kind} over epochs, {label}]({path.name})" for kind, path in pictures.items()]
    lines += ["", f"## {MEASURED}", ""]
    for one in judged:
        lines += [f"- ({one.experiment}) {one.sentence} **{SIGNS[one.verdict]} {one.verdict}**"]
        lines += [f"  - {check}" for check in one.checks]
        lines += [f"  - Why: {one.why}."] if one.why else []
    lines += ["", rule, ""]
    for table in tables:
        lines += [f"## {table.title}", "", "| " + " | ".join(table.columns) + " |"]
        lines += ["|---" * len(table.columns) + "|"]
        lines += ["| " + " | ".join(row) + " |" for row in table.rows]
        lines += ["", f"{table.text} {label}.", ""]
    lines += [f"## {WORDS}", ""]
    lines += [f"- *{word}*: {meaning}" for word, meaning in IN_NUMBERS.items()]
    return "\n".join(lines) + "\n"


MEASURED = "What the documents say, and what was measured"
WORDS = "The words in numbers"
RULE = (
    "Each line shows a difference and ± twice its standard error over seeds. It is positive if the "
    "outcome is what the documents state. Reproduced: the difference is larger than twice its "
    "error. Within noise: it is not. Not reproduced: it is negative, and by more than that. One "
    "seed has no spread and no verdict. Errors are over seeds alone."
)


def _rule(runs: Sequence[Run]) -> str:
    """The rule of verdicts, and what its errors leave out."""
    images = max(run.facts.get("validation_images", 0) for run in runs)
    if not images:
        return RULE
    return (
        f"{RULE} All runs validate on the same {images:,} images, a sample which gives an accuracy "
        f"of 90 % a further standard error of {100 * standard_error(0.9, images):.1f} points."
    )


def _page(
    label: str,
    tables: Sequence[Table],
    judged: Sequence[Judged],
    pictures: Mapping[str, Path],
    made: str,
    rule: str,
) -> str:
    def cells(tag: str, row: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"

    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width'>",
        f"<title>What regularizes</title><style>{STYLE}</style>",
        f"<h1>{TITLE}</h1>",
        f"<p class=label><b>{html.escape(label)}.</b> {inline_html(made)}</p>",
    ]
    for kind, path in pictures.items():
        content = base64.b64encode(path.read_bytes()).decode()
        parts.append(f"<img alt='{kind} over epochs' src='data:image/png;base64,{content}'>")
    parts += [f"<h2>{MEASURED}</h2><ol>"]
    for one in judged:
        kind = one.verdict.replace(" ", "-")
        lines = [*map(str, one.checks), *([f"Why: {one.why}."] if one.why else [])]
        checks = "".join(f"<div class=check>{html.escape(line)}</div>" for line in lines)
        parts.append(
            f"<li value={one.experiment}>{html.escape(one.sentence)} "
            f"<b class={kind}>{SIGNS[one.verdict]} {one.verdict}</b>{checks}</li>"
        )
    parts += [f"</ol><p>{rule}</p>"]
    for table in tables:
        parts += [f"<h2>{table.title}</h2>", "<table>", cells("th", table.columns)]
        parts += [cells("td", row) for row in table.rows]
        parts += [f"</table><p>{html.escape(f'{table.text} {label}.')}</p>"]
    parts += [f"<h2>{WORDS}</h2><ul>"]
    parts += [f"<li><i>{html.escape(word)}</i>: {text}</li>" for word, text in IN_NUMBERS.items()]
    return "\n".join([*parts, "</ul></html>"]) + "\n"
