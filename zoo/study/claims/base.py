"""What every claim is: a sentence, a measurement, a rule and a picture."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import mean
from typing import Any

from zoo import registry
from zoo.core.files import is_file, read_json, ready_folder, write_text
from zoo.core.pictures import save_figure
from zoo.core.text import counted
from zoo.errors import UserError
from zoo.runs.summary import processor, versions
from zoo.study.catalog import CLAIMS
from zoo.study.pictures import large_type, set_title
from zoo.study.verdicts import Verdict, difference, judge, standard_error

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

    @property
    def draws(self) -> int:
        """Seeds of what takes no training, and so costs little; one where one was asked for."""
        return 1 if self.seeds == 1 else max(10, self.seeds)

    @property
    def arguments(self) -> str:
        """How this form is asked for on the command line, with a space before it."""
        usual = QUICK if self.quick else FULL
        seeds = "" if self.seeds == usual.seeds else f" --seeds {self.seeds}"
        return (" --quick" if self.quick else "") + seeds


QUICK, FULL = Form(True, 3), Form(False, 5)


@dataclass(frozen=True)
class Finding:
    """A part of a claim: what it says, the number measured, its interval and the verdict.

    ``low`` and ``high`` are the number ∓ twice its standard error over seeds; None of one seed,
    which has no spread, and of what is ``exact``: computed without anything random, or the same by
    construction whatever the seed. ``why`` explains what is not as the documents say.
    """

    says: str
    number: str  # what is measured, with its unit
    value: float
    low: float | None
    high: float | None
    verdict: Verdict
    why: str = ""
    exact: bool = False

    def __str__(self) -> str:
        text = f"{self.verdict:<15} {self.says}\n{'':<16}{self.number}: {self.value:.4g}"
        text += f" ({self.interval})"
        return text if self.verdict == "reproduced" else f"{text}\n{'':<16}{self.reason}"

    @property
    def interval(self) -> str:
        """The interval as text, or why there is none."""
        if self.low is None or self.high is None:
            return "exact" if self.exact else "one seed"
        return f"{self.low:.4g} to {self.high:.4g}"

    @property
    def reason(self) -> str:
        """Why the documents' outcome is not seen."""
        return REASONS[self.verdict] if self.verdict == "one seed" or not self.why else self.why


@dataclass(frozen=True)
class Claim:
    """A claim of the documents.

    Args:
        name: as typed.
        sentence: what the documents say.
        measure: runs the experiment; returns JSON values.
        judge: findings from them, by a rule that is code.
        draw: a figure of them, from nothing else.
        message: what was measured, in one sentence: the picture's title.
        bars: what bars and bands in the picture are.
    """

    name: str
    sentence: str
    measure: Callable[[Form], Numbers]
    judge: Callable[[Numbers], list[Finding]]
    draw: Callable[[Numbers], Any]
    message: Callable[[Numbers], str]
    bars: str = "Bars and bands: ± 2 standard errors over seeds."


# Where a claim says nothing of its own.
REASONS: dict[Verdict, str] = {
    "within noise": "Twice the standard error over seeds is more than the difference.",
    "not reproduced": "The difference is the other way, and more than seeds differ by.",
    "one seed": "One seed has no spread.",
}


# What a result on disk has, whatever else.
PARTS = set(
    "claim form seeds sentence verdict findings command seconds date hardware numbers".split()
)
FINDING = {field.name for field in fields(Finding)}


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

    Raises:
        UserError: nothing can be written in ``out``, or a result of more seeds is there.
    """
    file = file_of(claim.name, form.name, out)
    ready_folder(file.parent)
    _keep_more_seeds(claim, form, out)
    started, used = time.perf_counter(), time.process_time()
    numbers = rounded(claim.measure(form))
    result = {
        "claim": claim.name,
        "form": form.name,
        "seeds": form.seeds,
        "sentence": "",
        "verdict": "",
        "findings": [],
        "command": f"python -m zoo study {claim.name}{form.arguments}",
        "seconds": round(time.perf_counter() - started, 1),
        # Of all threads together: what other programs on the machine do not lengthen.
        "cpu_seconds": round(time.process_time() - used, 1),
        "date": time.strftime("%Y-%m-%d"),
        "hardware": processor(),
        "versions": versions(),
        "numbers": numbers,
    }
    _keep_more_seeds(claim, form, out)  # those of another process, which has ended meanwhile
    return conclude(claim, result, out)


def _keep_more_seeds(claim: Claim, form: Form, out: Path) -> None:
    known = stored_result(claim.name, form, out)
    if known is not None and known["seeds"] > form.seeds:
        raise UserError(
            f"{file_of(claim.name, form.name, out)} has {counted(known['seeds'], 'seed')}, and "
            f"{form.seeds} would replace them: give another --out"
        )


def conclude(claim: Claim, result: dict[str, Any], out: Path) -> dict[str, Any]:
    """Judges the numbers of a result, and writes it and its picture."""
    findings = claim.judge(result["numbers"])
    result["sentence"] = claim.sentence
    result["verdict"] = summed([finding.verdict for finding in findings])
    result["findings"] = [asdict(finding) for finding in findings]
    file = file_of(claim.name, result["form"], out)
    save_picture(claim, result, file.with_suffix(".png"))
    write_text(file, in_lines(result) + "\n")
    return result


def redraw(claims: Mapping[str, str] = CLAIMS, out: Path = Path("docs/study")) -> Path:
    """Judges and draws every stored result anew, without measuring, and writes their page.

    Args:
        claims: where each is found, by name.
        out: where ``run_claim`` wrote.
    """
    for name, place in claims.items():
        for form in (FULL, QUICK):
            if (result := stored_result(name, form, out)) is not None:
                conclude(registry.load(place), result, out)
    return write_page(claims, out)


def rounded(content: Any) -> Any:
    """The same JSON value with six digits of each number, which is more than is ever read."""
    if isinstance(content, dict):
        return {name: rounded(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [rounded(value) for value in content]
    if isinstance(content, float) and math.isfinite(content):
        return float(f"{content:.6g}")
    return content


def in_lines(content: Any, indent: str = "") -> str:
    """JSON with an entry a line; a list of plain values is one line."""
    inner = indent + "  "
    if isinstance(content, dict) and content:
        names = [json.dumps(name, ensure_ascii=False) for name in content]
        values = [in_lines(value, inner) for value in content.values()]
        parts = [f"{name}: {value}" for name, value in zip(names, values, strict=True)]
    elif isinstance(content, list) and any(isinstance(value, dict | list) for value in content):
        parts = [in_lines(value, inner) for value in content]
    else:
        return json.dumps(content, ensure_ascii=False)
    ends = "{}" if isinstance(content, dict) else "[]"
    return f"{ends[0]}\n{inner}" + f",\n{inner}".join(parts) + f"\n{indent}{ends[1]}"


def save_picture(claim: Claim, result: dict[str, Any], path: Path) -> None:
    """Draws a result under what was measured, with the documents' sentence below."""
    seeds = counted(result["seeds"], "seed")
    text = f"The documents: {claim.sentence}\n"
    text += f"Measured in {result['form']} form, {seeds} of every fit: {result['verdict']}."
    if result["seeds"] > 1:
        text += f" {claim.bars}"
    with large_type():
        figure = claim.draw(result["numbers"])
        set_title(figure, claim.message(result["numbers"]), text)
        save_figure(figure, path, dpi=120)


def summed(verdicts: Sequence[Verdict]) -> str:
    """The verdict of all parts of a claim, or how many of them are reproduced."""
    if len(set(verdicts)) == 1:
        return verdicts[0]
    return f"{verdicts.count('reproduced')} of {len(verdicts)} parts reproduced"


def stored_result(name: str, form: Form, out: Path) -> dict[str, Any] | None:
    """What is known of a claim in one form, or nothing.

    Raises:
        UserError: the file is no result of a claim.
    """
    file = file_of(name, form.name, out)
    if not is_file(file):
        return None
    content = read_json(file)
    findings = content.get("findings") if isinstance(content, dict) else None
    whole = isinstance(findings, list) and content.keys() >= PARTS
    if not whole or not all(isinstance(f, dict) and f.keys() == FINDING for f in findings or ()):
        raise UserError(f"{file} is no result of a claim: restore it, or remove it")
    return dict(content)


def read_result(name: str, out: Path) -> dict[str, Any] | None:
    """What is known of a claim: the full form's result, else the quick one's, else nothing."""
    return stored_result(name, FULL, out) or stored_result(name, QUICK, out)


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
            lines.append(
                f"| {f.says} | {_cell(f.number)} | {f.value:.4g} | {f.interval} | {f.verdict} |"
            )
        missed = [f for f in findings if f.verdict != "reproduced"]
        lines += ["", *(f"- *{f.verdict}*: {f.says} {f.reason}" for f in missed)] if missed else []
        lines += [
            "",
            f"`{result['command']}`, {counted(result['seeds'], 'seed')}: {time_of(result)} on "
            f"{result['hardware']}, {result['date']}; numbers in [{name}-{result['form']}.json]"
            f"({name}-{result['form']}.json).",
            "",
        ]
    page = out / "claims" / "README.md"
    write_text(page, "\n".join(lines))
    return page


INTRODUCTION = (
    "Each number is shown with ± twice its standard error over seeds. *Reproduced*: the difference "
    "has the sign that the documents state and is larger than twice its error. *Within noise*: it "
    "is not. *Not reproduced*: it has the other sign, and is larger than that. "
    "The line below each table says how many seeds of every fit there are, the measured number "
    "where it is of more. Twice the standard error over five seeds holds the true mean in about "
    "88 % of cases (Student's t), not in 95 %. "
    "*Exact* is a number without anything random in it, or one that is the same by construction "
    "whatever the seed: it has a verdict and needs no interval. One seed has no "
    "interval and no verdict. Errors are over seeds alone: all seeds are judged by the "
    "same few held-out images or characters, 180 digits for example, and others would give other "
    "numbers. Where the documents' outcome is not seen, a line under the "
    "table says why."
)


def time_of(result: dict[str, Any]) -> str:
    """How long a claim was measured, by the clock and of processor time."""
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
    verdict = judge(gap - least, error)
    if least and not why and verdict == "within noise":
        why = f"The interval reaches over {least:g}: more seeds would tell."
    elif least and not why:
        why = f"The difference is less than {least:g}, by more than seeds differ."
    return Finding(says, number, gap, *around(gap, error), verdict, why)


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
    verdict = judge(margin - abs(gap), error)
    if not why and verdict == "within noise":
        why = f"The interval reaches over the margin of {margin:g}: more seeds would tell."
    elif not why:
        why = f"The difference is larger than {margin:g}, by more than seeds differ."
    return Finding(says, number, gap, *around(gap, error), verdict, why)


def within(
    says: str, number: str, values: Sequence[float], room: Sequence[float], why: str = ""
) -> Finding:
    """A finding that a number lies where the documents have it.

    Args:
        says: what the documents say.
        number: what is measured, with its unit.
        values: of it, one for each seed.
        room: for each seed, how far the value is on the right side of the bound.
        why: what explains it where it is not so.
    """
    verdict = judge(mean(room), standard_error(room))
    if not why and verdict == "within noise":
        why = "The interval reaches over the bound."
    elif not why:
        why = "It lies on the other side of the bound, by more than seeds differ."
    middle = mean(values)
    return Finding(says, number, middle, *around(middle, standard_error(values)), verdict, why)


def exactly(says: str, number: str, value: float, holds: bool, why: str = "") -> Finding:
    """A finding that needs no statistics: nothing in it is random, or nothing random matters."""
    verdict: Verdict = "reproduced" if holds else "not reproduced"
    why = why or "The number is another, in every run."
    return Finding(says, number, value, None, None, verdict, why, exact=True)


def signed(change: float, digits: int) -> str:
    """A change for a picture's title: ``+0.01``, ``−0.01``, and ``+0.00`` in place of −0.00."""
    return f"{round(change, digits) + 0.0:+.{digits}f}".replace("-", "−")


def around(value: float, error: float | None) -> tuple[float | None, float | None]:
    """The interval of a value, twice its error each way; none where the error is not known."""
    return (None, None) if error is None else (value - 2 * error, value + 2 * error)


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean over seeds, and mean ∓ twice its standard error, to be drawn; of one seed all equal."""
    middle, error = mean(values), standard_error(values) or 0.0
    return middle, middle - 2 * error, middle + 2 * error
