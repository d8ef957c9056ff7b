"""What every claim is: a sentence, a measurement, a rule and a picture."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from zoo.core.files import is_file, read_json, write_json, write_text
from zoo.core.pictures import save_figure
from zoo.core.text import counted
from zoo.runs.summary import processor, versions
from zoo.study.pictures import set_title
from zoo.study.verdicts import Verdict, difference, judge

Numbers = dict[str, Any]  # JSON values


@dataclass(frozen=True)
class Form:
    """How thoroughly a claim is measured.

    Args:
        quick: in at most five minutes on 2 cores.
        seeds: of every fit.
    """

    quick: bool
    seeds: int

    @property
    def name(self) -> str:
        return "quick" if self.quick else "full"


QUICK, FULL = Form(True, 3), Form(False, 5)


@dataclass(frozen=True)
class Finding:
    """A part of a claim: what it says, the number measured, its interval and the verdict.

    ``low`` and ``high`` are the number ∓ twice its standard error, or exact where both equal it.
    ``why`` is what explains it where the documents' outcome is not seen.
    """

    says: str
    number: str  # what is measured, with its unit
    value: float
    low: float
    high: float
    verdict: Verdict
    why: str = ""

    def __str__(self) -> str:
        interval = f" [{self.low:.4g}, {self.high:.4g}]" if self.low != self.high else ""
        text = f"{self.verdict:<15} {self.says}\n{'':<16}{self.number}: {self.value:.4g}{interval}"
        return text if self.verdict == "reproduced" else f"{text}\n{'':<16}{self.reason}"

    @property
    def reason(self) -> str:
        """Why the documents' outcome is not seen."""
        return self.why or REASONS[self.verdict]


@dataclass(frozen=True)
class Claim:
    """A claim of the documents.

    Args:
        name: as typed.
        sentence: what the documents say.
        measure: runs the experiment; returns JSON values.
        judge: findings from them, by a rule that is code.
        draw: a figure of them; the sentence and its verdict become the title.
    """

    name: str
    sentence: str
    measure: Callable[[Form], Numbers]
    judge: Callable[[Numbers], list[Finding]]
    draw: Callable[[Numbers], Any]


# Where a claim says nothing of its own.
REASONS: dict[Verdict, str] = {
    "within noise": "Seeds differ by more than the difference: more of them would tell.",
    "not reproduced": "The difference is the other way, and more than seeds differ by.",
    "one seed": "One seed has no spread.",
}


def file_of(name: str, form: str, out: Path) -> Path:
    return out / "claims" / f"{name}-{form}.json"


def run_claim(claim: Claim, form: Form, out: Path) -> dict[str, Any]:
    """Measures a claim, judges it, and writes result and picture.

    Args:
        claim: what is measured.
        form: quick or full.
        out: ``claims/NAME-FORM.json`` and ``.png`` are written in it.

    Returns:
        What was written.
    """
    started, used = time.perf_counter(), time.process_time()
    numbers = claim.measure(form)
    findings = claim.judge(numbers)
    file = file_of(claim.name, form.name, out)
    result = {
        "claim": claim.name,
        "form": form.name,
        "seeds": form.seeds,
        "sentence": claim.sentence,
        "verdict": summed([finding.verdict for finding in findings]),
        "findings": [asdict(finding) for finding in findings],
        "command": f"python -m zoo study {claim.name}" + (" --quick" if form.quick else ""),
        "seconds": round(time.perf_counter() - started, 1),
        # Of all threads together: what other programs on the machine do not lengthen.
        "cpu_seconds": round(time.process_time() - used, 1),
        "date": time.strftime("%Y-%m-%d"),
        "hardware": processor(),
        "versions": versions(),
        "numbers": numbers,
    }
    save_picture(claim, result, file.with_suffix(".png"))
    write_json(file, result)
    return result


def save_picture(claim: Claim, result: dict[str, Any], path: Path) -> None:
    """Draws a result under the theory's sentence and what became of it."""
    figure = claim.draw(result["numbers"])
    seeds = counted(result["seeds"], "seed")
    label = f"Measured ({result['form']} form, {seeds}): {result['verdict']}."
    set_title(figure, f"The documents: {claim.sentence}\n{label}")
    save_figure(figure, path, dpi=130)


def summed(verdicts: Sequence[Verdict]) -> str:
    """The verdict of all parts of a claim, or how many of them are reproduced."""
    if len(set(verdicts)) == 1:
        return verdicts[0]
    return f"{verdicts.count('reproduced')} of {len(verdicts)} parts reproduced"


def read_result(name: str, out: Path) -> dict[str, Any] | None:
    """What is known of a claim: the full form's result, else the quick one's, else nothing."""
    for form in (FULL, QUICK):
        file = file_of(name, form.name, out)
        if is_file(file) and isinstance(content := read_json(file), dict):
            return content
    return None


def write_page(names: Iterable[str], out: Path) -> Path:
    """Writes ``claims/README.md``: every claim that was measured, its picture and its findings.

    Args:
        names: of all claims, in their order.
        out: where ``run_claim`` wrote.
    """
    lines = ["# The documents' claims, measured", "", INTRODUCTION, ""]
    for name in names:
        if (result := read_result(name, out)) is None:
            continue
        label = "" if result["form"] == "full" else " (quick form)"
        lines += [f"## {name}: {result['verdict']}{label}", "", f"> {result['sentence']}", ""]
        lines += [f"![{name}{label}]({name}-{result['form']}.png)", ""]
        lines += ["| the claim says | measured | value | interval | verdict |", "|---" * 5 + "|"]
        findings = [Finding(**finding) for finding in result["findings"]]
        for f in findings:
            between = "exact" if f.low == f.high else f"{f.low:.4g} to {f.high:.4g}"
            lines.append(
                f"| {f.says} | {_cell(f.number)} | {f.value:.4g} | {between} | {f.verdict} |"
            )
        missed = [f for f in findings if f.verdict != "reproduced"]
        lines += ["", *(f"- *{f.verdict}*: {f.says} {f.reason}" for f in missed)] if missed else []
        lines += [
            "",
            f"`{result['command']}`: {_time(result)} on {result['hardware']}, {result['date']}; "
            f"numbers in [{name}-{result['form']}.json]"
            f"({name}-{result['form']}.json).",
            "",
        ]
    page = out / "claims" / "README.md"
    write_text(page, "\n".join(lines))
    return page


INTRODUCTION = (
    "Each number stands with its mean ± twice its standard error over seeds. *Reproduced*: the "
    "difference has the stated sign and exceeds that; *within noise*: it does not; *not "
    "reproduced*: it has the other sign and exceeds it. Where the documents' outcome is not seen, "
    "a line under the table says why."
)


def _time(result: dict[str, Any]) -> str:
    cpu = result.get("cpu_seconds")
    return f"{result['seconds']:.0f} s" + (f" ({cpu:.0f} s of processor time)" if cpu else "")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def report(result: dict[str, Any]) -> str:
    """A result as text: the documents' sentence, each number with interval and verdict."""
    findings = [str(Finding(**finding)) for finding in result["findings"]]
    head = f"{result['claim']} ({result['form']} form): {result['verdict']}"
    return "\n".join([head, f"the documents: {result['sentence']}", "", *findings])


def larger(
    says: str,
    number: str,
    left: Sequence[float],
    right: Sequence[float],
    least: float = 0.0,
    why: str = "",
) -> Finding:
    """A finding that ``left`` exceeds ``right``, by ``least`` or more.

    Args:
        says: what the documents say.
        number: what the difference is of, with its unit.
        left, right: a value for each seed.
        least: of the difference.
        why: what explains it where it is not so.
    """
    gap, error = difference(left, right)
    noise = 0.0 if error is None else 2 * error
    verdict = judge(gap - least, error)
    return Finding(says, number, gap, gap - noise, gap + noise, verdict, why)


def alike(
    says: str,
    number: str,
    left: Sequence[float],
    right: Sequence[float],
    margin: float,
    why: str = "",
) -> Finding:
    """A finding that two means differ by less than ``margin``; arguments as ``larger`` has them."""
    gap, error = difference(left, right)
    noise = 0.0 if error is None else 2 * error
    verdict = judge(margin - abs(gap), error)
    return Finding(says, number, gap, gap - noise, gap + noise, verdict, why)


def exactly(says: str, number: str, value: float, holds: bool) -> Finding:
    """A finding that needs no statistics."""
    return Finding(says, number, value, value, value, "reproduced" if holds else "not reproduced")


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean over seeds, and mean ∓ twice its standard error."""
    middle = mean(values)
    error = stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return middle, middle - 2 * error, middle + 2 * error
