"""Writes what README and docs take from the code: ``python docs/generate.py``.

Tables stand between ``<!-- table: NAME -->`` and ``<!-- end -->`` in README.md and
docs/study/README.md; docs/rules.md is a whole page. ``tests/test_docs.py`` holds what is
committed to what this writes.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zoo.study.statements import Judged

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # this checkout's package, whichever is installed
EXPERIMENTS = "docs/study/README.md#what-the-eight-experiments-show"
EIGHT = (
    "Eight experiments on FashionMNIST: augmentation, BatchNorm and dropout each improve "
    "validation; all three generalize best, and a large network with them is the most accurate."
)


def recipes_table() -> str:
    """The recipes that ship weights, from the checkpoints' cards."""
    from zoo.commands.list import table

    return table()


def experiments_table(study: Path = ROOT / "docs" / "study") -> str:
    """What became of the statements on the eight experiments, in full form."""
    from zoo.study.claims.base import summed

    rows = ["| experiment | the documents say | measured |", "|---|---|---|"]
    for one in _judged(study):
        parts = summed([check.verdict for check in one.checks]) if one.checks else one.verdict
        verdict = one.verdict if parts == one.verdict else f"{one.verdict} ({parts})"
        rows.append(f"| {one.experiment} | {one.sentence} | {verdict} |")
    return "\n".join(rows)


def verdicts_table(study: Path = ROOT / "docs" / "study") -> str:
    """What became of the eight experiments, and of every claim in docs/study/claims/*.json."""
    from zoo.study.catalog import CLAIMS
    from zoo.study.claims.base import read_result, summed

    eight = summed([one.verdict for one in _judged(study)])
    rows = ["| study | the documents say | measured |", "|---|---|---|"]
    rows.append(f"| [regularization]({EXPERIMENTS}) | {EIGHT} | {eight} |")
    for name in CLAIMS:
        if (result := read_result(name, study)) is not None:
            label = "" if result["form"] == "full" else " (quick form)"
            rows.append(f"| {name} | {result['sentence']} | {result['verdict']}{label} |")
    return "\n".join(rows)


def _judged(study: Path) -> list[Judged]:
    from zoo.study.regularization import FULL, known, of_study
    from zoo.study.statements import judge_all

    return judge_all(known(of_study(FULL, "regularization"), study))


TABLES: dict[str, Callable[[], str]] = {
    "recipes": recipes_table,
    "experiments": experiments_table,
    "verdicts": verdicts_table,
}


def filled(text: str) -> str:
    """A page with each of its tables as the code has it now."""

    def table(found: re.Match[str]) -> str:
        return f"<!-- table: {found[1]} -->\n{TABLES[found[1]]()}\n<!-- end -->"

    return re.sub(r"<!-- table: (\w+) -->\n.*?<!-- end -->", table, text, flags=re.DOTALL)


def rules_page() -> str:
    """Every rule of the audit with what triggers it and what does not."""
    from zoo.diagnostics.rules import RULES

    lines = [
        "<!-- Written by `python docs/generate.py` from zoo/diagnostics/rules. Do not edit. -->",
        "",
        "# The audit's rules",
        "",
        "`python -m zoo audit --explain RULE` prints the same. In the examples `nn` is `torch.nn`;",
        "`zoo.audit(model, *inputs, **options)` runs the rules. The severity is the gravest that",
        "the rule gives.",
        "",
        "| rule | severity | the audit reports |",
        "|---|---|---|",
    ]
    for rule in RULES.values():
        lines.append(f"| [{rule.id}](#{rule.id}) | {rule.severity} | {rule.sentence} |")
    for rule in RULES.values():
        lines += ["", f"## {rule.id}", "", f"**{rule.severity}.** {rule.sentence}", ""]
        lines += [f"- Fix: {rule.fix}", f"- Source: {rule.source}"]
        for title, code in (("Reported", rule.bad), ("Not reported", rule.good)):
            lines += ["", f"{title}:", "", "```python", code.strip(), "```"]
    return "\n".join(lines) + "\n"


def pages() -> dict[Path, str]:
    """Every generated file with its content as the code has it now."""
    with_tables = (ROOT / "README.md", ROOT / "docs" / "study" / "README.md")
    return {
        **{path: filled(path.read_text(encoding="utf-8")) for path in with_tables},
        ROOT / "docs" / "rules.md": rules_page(),
    }


if __name__ == "__main__":
    for path, content in pages().items():
        path.write_text(content, encoding="utf-8")
        print(path.relative_to(ROOT))
