"""``python -m zoo study NAME``: the documents' experiments and claims, each with a verdict."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from zoo import registry
from zoo.core.memory import keep_freed_memory
from zoo.core.options import Parser
from zoo.core.text import nearest
from zoo.errors import UserError
from zoo.study.catalog import CLAIMS, EXPERIMENTS, WILD


@contextmanager
def stopped(how_to_go_on: str) -> Iterator[None]:
    """Says in one line what Ctrl-C or SIGTERM leaves, and ends with the usual exit code."""

    def end(number: int, _: Any) -> None:
        # A fit puts Lightning's handler in its place, which calls this one, and ends in good order.
        if signal.getsignal(number) is end:
            raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as stop:
        if getattr(stop, "code", None) == 0:  # --help
            raise
        # Lightning answers both with a SystemExit of its own; a fit of the zoo's has the code.
        asked = type(stop).__name__ == "SIGTERMException" or getattr(stop, "code", None) == 143
        print(f"\nzoo study: stopped: {how_to_go_on}", file=sys.stderr)
        raise SystemExit(143 if asked else 130) from None
    finally:
        signal.signal(signal.SIGTERM, before)


GOES_ON = "the same command goes on where it stopped"
NOT_KEPT = "a claim keeps nothing until its end; the same command measures it from the start"


def main(arguments: list[str]) -> int:
    if WILD in arguments:  # it has options of its own, which may stand before it, too
        from zoo.study.in_the_wild import main as audit_the_wild

        at = arguments.index(WILD)
        with stopped(GOES_ON):
            return int(audit_the_wild(arguments[:at] + arguments[at + 1 :]))
    parser = Parser(
        "study",
        "Measure what course notes on regularization, called the documents, say: their eight "
        "experiments (regularization), some that they did not try (beyond), or one of their "
        "claims, each with a number, a picture and a verdict; or list all verdicts.",
    )
    parser.add_argument(
        "name",
        metavar="NAME",
        help=f"list, {', '.join(EXPERIMENTS)}, {WILD} (the audit over every architecture of timm "
        f"and torchvision; it has options of its own: {WILD} --help), or a claim: "
        f"{', '.join(CLAIMS)}",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a part of the data, fewer epochs: made to take at most 15 minutes of 2 cores, a "
        "claim at most 5",
    )
    parser.add_argument(
        "--seeds",
        type=int,
        default=None,
        help="of every fit (default: of the experiments 3, and 1 in quick form; of a claim 5, and "
        "3 in quick form)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("docs/study"),
        help="folder of results and pictures (default: docs/study)",
    )
    parser.add_argument(
        "--runs",
        type=Path,
        default=Path("runs/study"),
        help="experiments: folder of their fits (default: runs/study)",
    )
    options = parser.parse_args(arguments)
    if options.seeds is not None and options.seeds < 1:
        raise UserError(f"--seeds is {options.seeds}: it must be at least 1")
    if options.name == "list":
        if options.quick or options.seeds is not None:
            raise UserError("list takes --out alone: it shows the full form where there is one")
        print("\n".join(verdicts(options.out)))
        return 0
    keep_freed_memory()
    if options.name in EXPERIMENTS:
        from zoo.study.regularization import run

        with stopped(GOES_ON):
            return run(options.name, options.quick, options.seeds, options.out, options.runs)
    if options.name not in CLAIMS:
        known = ["list", *EXPERIMENTS, WILD, *CLAIMS]
        raise UserError(
            f"no study named {options.name!r}{nearest(options.name, known)} (there are "
            f"{', '.join(known)})"
        )

    from zoo.core.text import counted
    from zoo.study.claims.base import (
        FULL,
        QUICK,
        file_of,
        read_result,
        report,
        run_claim,
        stored_result,
        time_of,
        write_page,
    )
    from zoo.study.progress import elapsed

    form = QUICK if options.quick else FULL
    if options.seeds is not None:
        form = replace(form, seeds=options.seeds)
    claim = registry.load(CLAIMS[options.name])
    # All are on the page that is written at the end: name a damaged one before hours of measuring.
    for name in CLAIMS:
        read_result(name, options.out)
    last = stored_result(claim.name, form, options.out)
    took = f"; last time it took {time_of(last)}" if last else ""
    started = f"measuring {claim.name} in {form.name} form, {counted(form.seeds, 'seed')}{took}"
    print(started, file=sys.stderr, flush=True)
    with stopped(NOT_KEPT), elapsed(f"{claim.name}, {form.name} form"):
        result = run_claim(claim, form, options.out)
    print(report(result))
    print(f"\npicture: {file_of(claim.name, form.name, options.out).with_suffix('.png')}")
    print(f"page of all claims: {write_page(CLAIMS, options.out)}")
    return 0


def verdicts(out: Path) -> list[str]:
    """Every statement, claim and audit with its verdict, or that it was not run."""
    from zoo.study.claims.base import read_result
    from zoo.study.compare import table
    from zoo.study.regularization import FULL, QUICK, STUDIES, finished, of_study
    from zoo.study.statements import judge_all

    rows: dict[str, list[str]] = {}
    known_as: dict[int, str] = {}
    for study in STUDIES:
        judged = [judge_all(finished(of_study(plan, study), out)) for plan in (FULL, QUICK)]
        for full, quick in zip(*judged, strict=True):
            form, one = (QUICK.form, quick) if full.verdict == "not run" else (FULL.form, full)
            form = "-" if one.verdict == "not run" else form
            sentence = one.sentence + (f" ({one.why})" if one.verdict == "not judged" else "")
            # Those that the second study repeats are of the first.
            known_as.setdefault(one.experiment, f"{study} ({one.experiment})")
            rows.setdefault(known_as[one.experiment], [form, one.verdict, sentence])
    for name in CLAIMS:
        result = read_result(name, out)
        if result is None:
            rows[name] = ["-", "not run", registry.load(CLAIMS[name]).sentence]
            continue
        rows[name] = [result["form"], result["verdict"], result["sentence"]]
        for number, finding in enumerate(result["findings"], 1):
            rows[f"  {name} {number}"] = ["", finding["verdict"], finding["says"]]
    rows[WILD] = ["-", audited(out), "Which architectures put dropout before BatchNorm."]
    return table(["form", "verdict", "the documents say"], rows)


def audited(out: Path) -> str:
    """How far the audit over all architectures is."""
    from zoo.study.in_the_wild import current, registered
    from zoo.study.table import Table

    rows = current(Table(out / "in_the_wild.csv", []))
    if not rows:
        return "not run"
    visited = sum(not row["argument"] for row in rows)
    return f"{visited:,} of {len(registered()):,} architectures"
