"""The audit in the wild as a page: Markdown, and one HTML file whose tables sort."""

from __future__ import annotations

import html
import json
import platform
import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from string import Template
from typing import Any

import timm
import torch
import torchvision

from zoo.core.files import write_text
from zoo.core.text import inline_html
from zoo.core.version import __version__
from zoo.diagnostics.rules import RULES

Row = dict[str, str]
Block = tuple[str, Any]  # ("h2", text), ("p", text), ("code", text) or ("table", (header, rows))

SAMPLE = 200  # audits that are compared with the oracle
NO_SHIFT = 1.05  # above it, a ratio is more than sampling makes
SHOWN = 40  # rows of the longest tables; the CSV and the HTML page hold all
AUDITED = ("audited", "in part")
COMMAND = "python -m zoo study in-the-wild"
NEW_ISSUE = "in_the_wild_reports.md"
PAGE = "in_the_wild.html"


def write_page(folder: Path, tables: dict[str, list[Row]], registered: int) -> None:
    """Writes ``in_the_wild.md`` and ``in_the_wild.html`` of what is known so far.

    Args:
        folder: of the tables and the pages.
        tables: step → its rows.
        registered: how many architectures there are.
    """
    blocks = content(tables, registered, (folder / NEW_ISSUE).is_file())
    write_text(folder / "in_the_wild.md", markdown(blocks))
    write_text(folder / PAGE, page(blocks, tables))


# -- what is said ----------------------------------------------------------------------------------


def content(tables: dict[str, list[Row]], registered: int, reports: bool) -> list[Block]:
    """The page as blocks; ``reports`` tells whether bug reports stand beside it."""
    audits, ratios, oracle = (tables[step] for step in ("audit", "ratios", "oracle"))
    defaults = [row for row in audits if not row["argument"]]
    rated = [row for row in audits if row["argument"]]
    return [
        ("h1", "The audit in the wild"),
        ("p", _introduction(audits, defaults, rated, ratios, oracle) + (NEXT if reports else "")),
        ("p", _progress(defaults, registered)),
        ("code", COMMAND),
        ("h2", "Dropout before BatchNorm"),
        *_faults(audits, ratios),
        ("h2", "Every rule"),
        (
            "p",
            "Architectures with default arguments, and audits with a drop rate, in which a rule "
            "finds something, errors and hints alike.",
        ),
        ("table", _rules(defaults, rated)),
        ("h2", "Drop rates that drop nothing"),
        *_without_effect(audits),
        *_oracle(oracle),
        ("h2", "What was not audited"),
        *_outcomes(audits),
        ("h2", "How it is measured"),
        *(("p", paragraph) for paragraph in METHOD),
    ]


METHOD = [
    "Each architecture is built with random weights on the meta device, where nothing is computed, "
    "and audited on its own image size with a batch of 2. Where a model does not run there, it is "
    "built on the CPU and audited on the smallest images that it takes (64 pixels and up; the "
    "column `device` says which). Detection models see images of 128 pixels with one box each.",
    "`straight`, `merged` and `behind_norm` count the BatchNorms that dropout reaches: with no "
    "sum, concatenation or normalization between; only by way of a sum or concatenation; only "
    "after another normalization, which the audit does not report. `stochastic_depth` counts "
    "those that stochastic depth reaches, a hint and no fault.",
    "Ratios are measured at initialization on random images, with norm and layer scales that begin "
    "below 0.1 set to 1 (they hide their branch, and training moves them): 10 training batches of "
    "8 let every BatchNorm learn its statistics, then `zoo.variance_shift` compares the variance "
    "of its input with dropout on and off over 4 further batches. Off is all noise, stochastic "
    "depth too where an architecture has it by default, and the blocks of block dropout are cut "
    "to the small feature maps of small images. A BatchNorm after a global average sees 8 values "
    "a batch, and its ratio is the least certain. "
    f"Up to {NO_SHIFT} counts as no shift. A trained network on real images has other ratios; the "
    "exact one for a linear layer is 1 + p/(1−p) · E[x²]/Var[x] as the layer weighs its inputs (Li "
    "et al., CVPR 2019, section 3).",
]


def _introduction(
    audits: list[Row], defaults: list[Row], rated: list[Row], ratios: list[Row], oracle: list[Row]
) -> str:
    if not audits:
        return "No architecture is audited yet."
    tables = {"in_the_wild": audits, "in_the_wild_ratios": ratios, "in_the_wild_oracle": oracle}
    files = [f"{name}.csv" for name, rows in tables.items() if rows]  # those that are written yet
    dates = sorted({row["date"] for row in audits})
    span = " to ".join(dict.fromkeys([dates[0], dates[-1]]))
    done = [row for row in defaults if row["outcome"] in AUDITED]
    clean = sum(row["ok"] == "yes" for row in done)
    return (
        f"`zoo.audit` follows the data through one training forward of every architecture that "
        f"timm {timm.__version__} and torchvision {_version(torchvision)} register, up to 120 "
        f"million parameters. {len(done):,} architectures are audited with default arguments, and "
        f"{clean:,} of them have no error. "
        f"{sum(row['outcome'] in AUDITED for row in rated):,} further audits set one drop rate of "
        f"the constructor to 0.1. Audited on {span} with zoo {__version__}, torch "
        f"{_version(torch)} and Python {platform.python_version()}, on a CPU. The tables are "
        f"{', '.join(f'[{name}]({name})' for name in files)}; [{PAGE}]({PAGE}) has all audits "
        "in a table that sorts and filters."
    )


NEXT = f" Bug reports for the plainest cases are in [{NEW_ISSUE}]({NEW_ISSUE})."


def _progress(defaults: list[Row], registered: int) -> str:
    seen, large = len(defaults), sum(row["outcome"] == "too large" for row in defaults)
    text = (
        f"{seen:,} of {registered:,} registered architectures are visited, {large} are too large."
    )
    if seen < registered:
        text += (
            " **The run is not finished**: families take turns in a seeded random order, so what "
            "is there is a sample and its counts will grow. The command below goes on with it."
        )
    return text


def _version(package: Any) -> str:
    return package.__version__.partition("+")[0]


def number(row: Row, column: str) -> int:
    """A count in a row; 0 where the cell is empty."""
    return int(row[column] or 0)


def at_fault(audits: list[Row]) -> list[Row]:
    """Audits that find dropout before BatchNorm, less those that only repeat the defaults.

    Args:
        audits: rows of the audit, the defaults of each architecture among them.
    """
    faulty = [row for row in audits if number(row, "straight") + number(row, "merged")]

    def where(row: Row) -> tuple[str, ...]:
        return row["library"], row["name"], row["straight"], row["merged"]

    by_default = {where(row) for row in faulty if not row["argument"]}
    return [row for row in faulty if not row["argument"] or where(row) not in by_default]


def _faults(audits: list[Row], ratios: list[Row]) -> list[Block]:
    faulty = at_fault(audits)
    if not faulty:
        return [("p", "Nothing found so far.")]
    keys = {_key(row) for row in faulty}
    measured = {
        _key(row): row for row in ratios if row["outcome"] == "measured" and _key(row) in keys
    }
    shifted = sum(float(row["largest"]) > NO_SHIFT for row in measured.values())
    default = [row for row in faulty if not row["argument"]]
    rated = [row for row in faulty if row["argument"]]
    straight = [sum(number(row, "straight") > 0 for row in rows) for rows in (default, rated)]
    # Stochastic depth that was not asked for, and is switched off with the rest.
    deep = [
        row
        for row in faulty
        if _key(row) in measured
        and number(row, "stochastic_depth")
        and not re.search("path|depth", row["argument"])
    ]
    text = (
        f"With default arguments {len(default)} architectures put dropout before a BatchNorm "
        f"({straight[0]} of them straight, the others by way of a sum or concatenation). With a "
        f"drop rate at 0.1 it is {len(rated)} audits more ({straight[1]} straight). The ratio is "
        "the largest over the BatchNorms at fault of the variance of their input with dropout on "
        f"to that with dropout off. It is measured for {len(measured)} of the {len(faulty)}, and "
        f"of these {shifted} are above {NO_SHIFT}."
    )
    if deep:
        text += (
            f" In {len(deep)} of them stochastic depth, which the architecture has by default, is "
            f"on and off as well ({', '.join(sorted({row['family'] for row in deep}))})."
        )

    def ratio(row: Row) -> float:
        return float(measured[_key(row)]["largest"]) if _key(row) in measured else 0.0

    families = Counter((row["library"], row["family"], _argument(row)) for row in faulty)
    grouped = []
    for (library, family, argument), count in families.most_common():
        of = [
            row
            for row in faulty
            if (row["library"], row["family"], _argument(row)) == (library, family, argument)
        ]
        largest = max(of, key=ratio)
        straight_in = sum(number(row, "straight") > 0 for row in of)
        way = {0: "through a sum", count: "straight"}.get(straight_in, f"straight in {straight_in}")
        grouped.append(
            [
                library,
                family,
                argument or "defaults",
                str(count),
                way,
                f"{ratio(largest):.2f}" if ratio(largest) else "",
                largest["name"],
                largest["example"],
            ]
        )
    header = "library family argument architectures way ratio at example".split()
    families_table: Block = ("table", (header, grouped))
    worst = sorted((row for row in faulty if ratio(row)), key=ratio, reverse=True)[:SHOWN]
    if not worst:
        return [("p", text), families_table]
    return [
        ("p", text),
        families_table,
        ("p", f"The {len(worst)} largest ratios of the {len(measured)} measured:"),
        (
            "table",
            (
                "library name argument straight merged BatchNorms median largest at".split(),
                [
                    [
                        row["library"],
                        row["name"],
                        row["argument"] or "defaults",
                        row["straight"],
                        row["merged"],
                        row["batch_norms"],
                        *(measured[_key(row)][c] for c in ("median", "largest", "at")),
                    ]
                    for row in worst
                ],
            ),
        ),
    ]


def _key(row: Row) -> tuple[str, ...]:
    return row["library"], row["name"], row["argument"]


def _argument(row: Row) -> str:
    return row["argument"].partition("=")[0]


def counts(row: Row) -> dict[str, int]:
    """Findings by rule."""
    pairs = (pair.split(":") for pair in row["findings"].split())
    return {rule: int(count) for rule, count in pairs}


def _rules(defaults: list[Row], rated: list[Row]) -> tuple[list[str], list[list[str]]]:
    def of(rows: list[Row]) -> Counter[str]:
        return Counter(rule for row in rows for rule in counts(row))

    default, other = of(defaults), of(rated)
    return (
        ["rule", "severity, at most", "with defaults", "with a drop rate", "what it says"],
        [
            [rule, RULES[rule].severity, str(default[rule]), str(other[rule]), RULES[rule].sentence]
            for rule in sorted(default | other, key=lambda rule: -default[rule])
        ],
    )


def _without_effect(audits: list[Row]) -> list[Block]:
    idle = [
        row
        for row in audits
        if row["argument"] and row["outcome"] == "audited" and not number(row, "dropouts")
    ]
    groups: dict[tuple[str, str, str], list[str]] = {}
    for row in idle:
        groups.setdefault((row["library"], row["family"], _argument(row)), []).append(row["name"])
    rows = [
        [*key, str(len(names)), ", ".join(sorted(names)[:5]) + (" …" if len(names) > 5 else "")]
        for key, names in sorted(groups.items())
    ]
    return [
        (
            "p",
            f"In {len(idle)} audits the constructor takes a drop rate of 0.1 and the training "
            "forward has no dropout at all: the rate is ignored.",
        ),
        ("table", ("library family argument architectures which".split(), rows)),
    ]


def _oracle(oracle: list[Row]) -> list[Block]:
    compared = [row for row in oracle if row["outcome"] in ("equal", "differs")]
    differing = [row for row in compared if row["outcome"] == "differs"]
    norms = sum(number(row, "batch_norms") for row in compared)
    if not compared:
        return []
    heading: Block = ("h2", "Against the seed")
    text = (
        f"The oracle knows no rule: it runs the training forward with up to 100 seeds and looks at "
        f"whether a BatchNorm's input changes. A seeded sample of up to {SAMPLE} audits, half of "
        "them with a dropout that reaches a BatchNorm, is compared at a rate of 0.5, or "
        "at its defaults where it was audited with them. "
        f"{len(compared)} of {len(oracle)} ran, and {len(compared) - len(differing)} of them are "
        f"equal, over {norms:,} BatchNorms."
    )
    if not differing:
        return [heading, ("p", text)]
    header = "library name argument missed invented near_missed near_invented".split()
    return [
        heading,
        ("p", text),
        ("table", (header, [[row[column] for column in header] for row in differing])),
    ]


def _outcomes(audits: list[Row]) -> list[Block]:
    groups: dict[tuple[str, str], list[str]] = {}
    for row in audits:
        if row["outcome"] != "audited":
            reason = "" if row["outcome"] == "too large" else row["note"]
            groups.setdefault((row["outcome"], reason), []).append(row["name"])
    rows = [
        [outcome, str(len(names)), reason, ", ".join(sorted(set(names))[:5])]
        for (outcome, reason), names in sorted(groups.items(), key=lambda item: -len(item[1]))
    ]
    return [
        (
            "p",
            "`too large`: over 120 million parameters. `in part`: the note says what was not "
            "followed. `not built`: the constructor takes the argument and fails. `crash`: the "
            "audit itself fails.",
        ),
        ("table", (["outcome", "audits", "note", "such as"], rows)),
    ]


# -- how it is written -----------------------------------------------------------------------------


def markdown(blocks: Iterable[Block]) -> str:
    """The blocks as Markdown."""
    parts = ["<!-- Written by `" + COMMAND + " page`. Do not edit. -->"]
    for kind, value in blocks:
        if kind == "table":
            header, rows = value
            lines = [header, ["---"] * len(header), *rows]
            parts.append("\n".join(f"| {' | '.join(_cell(c) for c in line)} |" for line in lines))
        elif kind == "code":
            parts.append(f"```bash\n{value}\n```")
        else:
            parts.append("#" * int(kind[1]) + f" {value}" if kind[0] == "h" else value)
    return "\n\n".join(parts) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


COLUMNS: dict[str, Callable[[Row, Row], str]] = {
    "library": lambda row, _: row["library"],
    "architecture": lambda row, _: row["name"],
    "argument": lambda row, _: row["argument"] or "defaults",
    "parameters": lambda row, _: row["parameters"],
    "BatchNorms": lambda row, _: row["batch_norms"],
    "dropouts": lambda row, _: row["dropouts"],
    "straight": lambda row, _: row["straight"],
    "through a sum": lambda row, _: row["merged"],
    "after a norm": lambda row, _: row["behind_norm"],
    "stochastic depth": lambda row, _: row["stochastic_depth"],
    "ratio, median": lambda _, ratio: ratio.get("median", ""),
    "ratio, largest": lambda _, ratio: ratio.get("largest", ""),
    "findings": lambda row, _: row["findings"],
    "outcome": lambda row, _: row["outcome"],
    "note": lambda row, _: row["note"],
}


def page(blocks: Iterable[Block], tables: dict[str, list[Row]]) -> str:
    """The blocks as one HTML page that needs no other file, with a table of all audits."""
    parts = []
    for kind, value in blocks:
        if kind == "table":
            header, rows = value
            head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
            body = "".join(
                f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>"
                for row in rows
            )
            parts.append(
                f'<div class="wide"><table class="sortable"><thead><tr>{head}</tr></thead>'
                f"<tbody>{body}</tbody></table></div>"
            )
        elif kind == "code":
            parts.append(f"<pre>{html.escape(value)}</pre>")
        else:
            parts.append(f"<{kind}>{inline_html(value)}</{kind}>")
    measured = {_key(row): row for row in tables["ratios"] if row["outcome"] == "measured"}
    rows = [
        [column(row, measured.get(_key(row), {})) for column in COLUMNS.values()]
        for row in tables["audit"]
    ]
    # Within a script, "</" would end it.
    data = json.dumps({"columns": list(COLUMNS), "rows": rows}, ensure_ascii=False)
    template = Template(Path(__file__).with_suffix(".html").read_text(encoding="utf-8"))
    return template.substitute(body="\n".join(parts), data=data.replace("</", "<\\/"))
