"""Audits every architecture that timm and torchvision register, and measures what is at fault.

``audit`` follows the data of every architecture, with default arguments and with each drop rate
that its constructor takes. ``ratios`` measures the variance shift of those with dropout before
BatchNorm. ``oracle`` compares a sample with ground truth that knows no rule. Each of these steps
fills a CSV row by row, and a run that was killed goes on where it stopped. ``page`` writes what is
known so far as Markdown and as one HTML page.
"""

from __future__ import annotations

import inspect
import random
import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from fnmatch import fnmatch
from itertools import zip_longest
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from zoo.core.files import ready_folder
from zoo.core.locks import held
from zoo.core.options import Parser
from zoo.diagnostics.audit import Report, audit
from zoo.diagnostics.trace.graph import MERGED, STRAIGHT, Trace, reach
from zoo.diagnostics.trace.recorder import record
from zoo.diagnostics.variance_shift import variance_shift
from zoo.errors import UserError
from zoo.study.in_the_wild_page import SAMPLE, at_fault, write_page
from zoo.study.seed_oracle import changed_by_the_seed
from zoo.study.table import Row, Table, Worker, says

LARGEST = 120_000_000  # parameters
RATE = 0.1
ORACLE_RATE = 0.5  # the seed must change every input now and then; where dropout stands is the same
SECONDS = {"audit": 180, "ratios": 1800, "oracle": 1800}  # of processor time, a row
MEMORY = 12 * 2**30  # of address space, for one row
SHIFT = "dropout-before-bn"
DEPTH = "stochastic-depth-before-bn"
LEARNING, MEASURING, BATCH = 10, 4, 8  # batches of random images, and images in each

# Constructors with **kwargs do not say which drop rates they pass on, so these are tried.
TRIED = """drop_rate drop_path_rate proj_drop_rate attn_drop_rate pos_drop_rate patch_drop_rate
attn_drop proj_drop""".split()

KEY = ["library", "version", "name", "argument"]
COLUMNS = {
    "audit": [
        *KEY,
        *"""family parameters input device outcome ok batch_norms dropouts straight merged
        behind_norm stochastic_depth findings example accepts seconds date note""".split(),
    ],
    "ratios": [
        *KEY,
        *"""input outcome measured median largest at running seconds date note""".split(),
    ],
    "oracle": [
        *KEY,
        *"""input outcome batch_norms depends near missed invented near_missed near_invented
        seconds date note""".split(),
    ],
}
_builder = torchvision.models.get_model_builder


@dataclass(frozen=True)
class Job:
    """One architecture with one argument, ``drop_rate=0.1``; "" is its defaults."""

    library: str
    name: str
    argument: str = ""

    @property
    def version(self) -> str:
        package = timm if self.library == "timm" else torchvision
        return package.__version__.partition("+")[0]  # without the CUDA that it was built for

    @property
    def key(self) -> tuple[str, ...]:
        return self.library, self.version, self.name, self.argument

    @property
    def options(self) -> dict[str, Any]:
        name, equals, value = self.argument.partition("=")
        return {name: float(value)} if equals else {}


def job_of(row: Row) -> Job:
    """The job of a row that was read."""
    return Job(row["library"], row["name"], row["argument"])


def key_of(row: Row) -> tuple[str, ...]:
    return tuple(row[column] for column in KEY)


# -- models and their inputs -----------------------------------------------------------------------


def registered() -> list[Job]:
    """Every architecture that timm and torchvision register, with default arguments."""
    jobs = [Job("timm", name) for name in timm.list_models()]
    return jobs + [Job("torchvision", name) for name in torchvision.models.list_models()]


def _module(job: Job) -> str:
    """The module that registers an architecture."""
    find = timm.models.model_entrypoint if job.library == "timm" else _builder
    return find(job.name).__module__


def build(job: Job, device: str) -> nn.Module:
    """Builds an architecture with random weights; nothing is downloaded.

    Args:
        job: which one.
        device: ``meta`` computes nothing.
    """
    torch.manual_seed(0)
    with torch.device(device):
        if job.library == "timm":
            return timm.create_model(job.name, pretrained=False, **job.options)
        builder = _builder(job.name)
        taken = inspect.signature(builder).parameters
        offline = {name: None for name in ("weights", "weights_backbone") if name in taken}
        return builder(**offline, **job.options)


def accepted(job: Job, model: nn.Module) -> list[str]:
    """The drop rates that an architecture's constructor takes.

    Args:
        job: the architecture, whose builder is tried where its class hides what it passes on.
        model: the architecture as it was built by default.
    """
    parameters = inspect.signature(type(model).__init__).parameters
    found = [
        name
        for name, parameter in parameters.items()
        if re.search(r"drop|stochastic_depth", name)
        and not name.endswith("_size")
        and not isinstance(parameter.default, bool)
        and (isinstance(parameter.default, float | int) or "float" in str(parameter.annotation))
    ]
    hides = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    if hides and not _is_taken(job, "no_such_rate"):  # which would swallow anything
        found += [name for name in TRIED if name not in found and _is_taken(job, name)]
    return found


def _is_taken(job: Job, name: str) -> bool:
    try:
        build(replace(job, argument=f"{name}={RATE}"), "meta")
    except Exception:  # a constructor refuses in any way it likes
        return False
    return True


def sizes(job: Job, model: nn.Module, smallest: bool) -> list[tuple[int, ...]]:
    """Shapes of one sample: the architecture's own, or smaller ones to try before it."""
    if job.library == "timm":
        cfg: Any = model.pretrained_cfg
        own = tuple(cfg["input_size"])
        fixed = cfg.get("fixed_input_size", False)
    else:
        package = _module(job)
        side = 299 if job.name.endswith("inception_v3") else 224
        own, fixed = (3, side, side), job.name.startswith(("vit_", "maxvit"))
        if ".video" in package:
            own, fixed = (3, 16, side, side), job.name.startswith("mvit")
        elif ".optical_flow" in package or ".detection" in package:
            return [(3, 128, 128)]
    if not smallest or fixed:
        return [own]
    sides = [side for side in (64, 96, 128) if side < own[-1]]
    return [*((*own[:-2], side, side) for side in sides), own]


def inputs_for(job: Job, model: nn.Module, size: tuple[int, ...], batch: int) -> tuple[Any, ...]:
    """The arguments of a training forward."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, *size, generator=generator)
    if type(model).__module__.startswith("torchvision.models.optical_flow"):
        return images, images.flip(-1)
    if type(model).__module__.startswith("torchvision.models.detection"):
        transform: Any = model.transform
        transform.min_size, transform.max_size = (size[-1],), size[-1]
        target = {
            "boxes": torch.tensor([[8.0, 8.0, 64.0, 64.0]]),
            "labels": torch.tensor([1]),
            "masks": torch.ones(1, *size[1:], dtype=torch.uint8),
            "keypoints": torch.full((1, 17, 3), 32.0),
        }
        return list(images), [dict(target) for _ in range(batch)]
    return (images,)


# -- a row of each step ----------------------------------------------------------------------------


def audit_row(job: Job) -> Row:
    """Audits one architecture: on the meta device, or where that fails on the smallest images.

    The outcome is ``audited``, ``in part`` (the report's notes say what was not followed),
    ``not audited`` (scripted), ``too large``, or how it fails: ``not built``, ``does not run``.
    """
    partly: Row | None = None
    row: Row = {"outcome": "not built"}
    for device in ("meta", "cpu"):
        try:
            model = build(job, device)
        except Exception as error:  # whatever a constructor raises
            row["note"] = says(error)
            continue
        row |= {
            "family": type(model).__module__.rpartition(".")[2],
            "device": device,
            "parameters": sum(p.numel() for p in model.parameters()),
        }
        if row["parameters"] > LARGEST:
            return row | {"outcome": "too large", "note": ""}
        if not job.argument and "accepts" not in row:
            row["accepts"] = " ".join(accepted(job, model))
        for size in sizes(job, model, smallest=device == "cpu"):
            inputs = inputs_for(job, model, size, 2)
            row["input"] = "×".join(map(str, (2, *size)))
            try:
                report = audit(model, *inputs)
            except UserError as error:
                row |= {"outcome": "does not run", "note": says(error)}
                continue
            seen = row | found(model, inputs, report)
            if seen["outcome"] != "in part":
                return seen
            partly = partly or seen
    return partly or row


def found(model: nn.Module, inputs: tuple[Any, ...], report: Report) -> Row:
    """What a report says, as columns."""
    kinds = Counter(finding.rule for finding in report.findings)
    norms = sum(n for kind, n in report.seen.items() if kind == "BatchNorm")
    noise = sum(n for kind, n in report.seen.items() if "drop" in kind.lower() or "depth" in kind)
    outcome = "in part" if report.notes else "audited"
    row: Row = {
        "outcome": outcome if report.audited else "not audited",
        "ok": "yes" if report.ok else "no",
        "batch_norms": norms,
        "dropouts": noise,
        "findings": " ".join(f"{rule}:{count}" for rule, count in kinds.items()),
        "note": re.sub(r"\S*/site-packages/", "", "; ".join(report.notes)),
        "straight": 0,
        "merged": 0,
        "behind_norm": 0,
        "stochastic_depth": len({f.module for f in report.findings if f.rule == DEPTH}),
    }
    if norms and noise:
        shifts = [finding for finding in report.findings if finding.rule == SHIFT]
        faults = {finding.module for finding in shifts}
        # As the audit does.
        mode = "evaluation as training" if fails_in_training(report) else "training"
        levels = nearest_dropout(record(model, inputs, mode=mode))
        straight = {module for module in faults if levels.get(module) == STRAIGHT}
        behind = {module for module, level in levels.items() if level > MERGED} - faults
        row |= {
            "straight": len(straight),
            "merged": len(faults - straight),
            "behind_norm": len(behind),
            "example": shifts[0].message if shifts else "",
        }
    return row


def fails_in_training(report: Report) -> str:
    """What a report says of a training forward that fails; empty where none does."""
    fails = (note for note in report.notes if note.startswith("training mode fails"))
    return next(fails, "")


def audit_smallest(
    job: Job, model: nn.Module, batch: int, rules: list[str]
) -> tuple[tuple[int, ...], Report]:
    """Finds the least size of a sample at which a training forward runs, and audits it there.

    Args:
        job: which architecture.
        model: the architecture as it was built.
        batch: images in the audit's input.
        rules: of the audit.

    Raises:
        UserError: there is none; the message says why the last fails.
    """
    for size in sizes(job, model, smallest=True):
        try:
            report = audit(model, *inputs_for(job, model, size, batch), rules=rules)
        except UserError as error:
            failure = error
            continue
        if not (fails := fails_in_training(report)):
            return size, report
        failure = UserError(fails)
    raise failure


def nearest_dropout(trace: Trace, path: bool = False) -> dict[str, int]:
    """Each live BatchNorm that a dropout reaches, with the level of the nearest.

    Args:
        trace: of a training forward.
        path: whether stochastic depth and random selections count as well.
    """
    reached = reach(trace.nodes)
    levels: dict[str, int] = {}
    for norm in trace.batch_norms:
        if norm.batch_norm is None or not norm.batch_norm.live:
            continue
        for parent in norm.inputs:
            for dropout, level in reached[parent.index].items():
                kind = dropout.dropout.kind if dropout.dropout else ""
                if path or kind not in ("path", "selection"):
                    levels[norm.module] = min(level, levels.get(norm.module, level))
    return levels


def ratio_row(job: Job) -> Row:
    """Measures the variance shift of the BatchNorms at fault, on random images of the least size.

    The weights are those of a fresh model, but scales that begin at (nearly) zero are set to one:
    they would hide their branch, and training moves them. The running statistics are the averages
    over a few training batches with dropout on.
    """
    model = build(job, "cpu")
    wake(model)
    try:
        size, report = audit_smallest(job, model, 2, [SHIFT])
    except UserError as error:
        return {"outcome": "does not run", "note": says(error)}
    faults = {finding.module for finding in report.findings}
    batches = [torch.randn(BATCH, *size) for _ in range(LEARNING + MEASURING)]
    learn(model, batches[:LEARNING])
    layers = [
        layer
        for layer in variance_shift(model, batches[LEARNING:]).layers
        if layer.module in faults and layer.ratio > 0
    ]
    if not layers:
        return {"outcome": "nothing measured", "note": f"{len(faults)} at fault"}
    largest = max(layers, key=lambda layer: layer.ratio)
    return {
        "input": "×".join(map(str, (BATCH, *size))),
        "outcome": "measured",
        "measured": len(layers),
        "median": f"{statistics.median(layer.ratio for layer in layers):.3f}",
        "largest": f"{largest.ratio:.3f}",
        "at": largest.module,
        "running": f"{largest.running_ratio:.3f}",
    }


@torch.no_grad()
def wake(model: nn.Module) -> None:
    """Sets to one the scales that begin at (nearly) zero: the last of a residual branch."""
    for name, parameter in model.named_parameters():
        scale = parameter.ndim > 0 and 0 < len(parameter) == parameter.numel()  # (C,) or (C, 1, 1)
        small = scale and bool((parameter == parameter.flatten()[0]).all() and parameter[0] < 0.1)
        if small and not name.endswith("bias"):
            parameter.fill_(1.0)


@torch.no_grad()
def learn(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Lets every BatchNorm learn the averages over some batches."""
    model.train()
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.track_running_stats:
            module.reset_running_stats()
            module.momentum = None  # the plain average of all batches
    for batch in batches:
        model(batch)


def oracle_row(job: Job) -> Row:
    """Compares the audit of one architecture with what the random seed changes in fact."""
    rate = replace(job, argument=re.sub(r"=.*", f"={ORACLE_RATE}", job.argument))
    model = build(rate, "cpu")
    try:
        size, report = audit_smallest(job, model, 3, [SHIFT, DEPTH])
    except UserError as error:
        return {"outcome": "does not run", "note": says(error)}
    (images,) = inputs_for(job, model, size, 3)
    trace = record(model, (images,), mode="training")
    depends = set(nearest_dropout(trace, path=True))
    near = {finding.module for finding in report.findings}
    changed, ran = changed_by_the_seed(model, images, depends)
    near_changed, _ = changed_by_the_seed(model, images, near, replay=True)
    return {
        "input": "×".join(map(str, (3, *size))),
        "outcome": "equal" if (depends, near) == (changed, near_changed) else "differs",
        "batch_norms": len(ran),
        "depends": len(changed),
        "near": len(near_changed),
        "missed": " ".join(sorted(changed - depends)),
        "invented": " ".join(sorted(depends - changed)),
        "near_missed": " ".join(sorted(near_changed - near)),
        "near_invented": " ".join(sorted(near - near_changed)),
    }


ROWS: dict[str, Callable[[Job], Row]] = {
    "audit": audit_row,
    "ratios": ratio_row,
    "oracle": oracle_row,
}


STEPS = [*ROWS, "page"]


def current(table: Table) -> list[Row]:
    """The rows of the versions that are installed."""
    return [row for row in table.rows() if row["version"] == job_of(row).version]


# -- what is to be done ----------------------------------------------------------------------------


def audits(table: Table, chosen: list[Job]) -> Iterator[Job]:
    """Each architecture with its defaults, then with each drop rate that it takes.

    Families take turns, so that the first rows have a member of each.
    """
    families: dict[str, list[Job]] = {}
    for job in random.Random(0).sample(chosen, len(chosen)):
        families.setdefault(_module(job), []).append(job)
    accepts = {key_of(row): row["accepts"] for row in table.rows()}
    for turn in zip_longest(*families.values()):
        for job in filter(None, turn):
            yield job
            if job.key not in accepts:  # its row was made just now
                accepts = {key_of(row): row["accepts"] for row in table.rows()}
            for name in accepts[job.key].split():
                yield replace(job, argument=f"{name}={RATE}")


def faulty(table: Table, chosen: list[Job]) -> Iterator[Job]:
    """Those with dropout before BatchNorm, straight or through a sum, smallest first."""
    keys = {job.key for job in chosen}
    for row in sorted(at_fault(current(table)), key=lambda row: int(row["parameters"])):
        if replace(job_of(row), argument="").key in keys:
            yield job_of(row)


def sampled(table: Table, chosen: list[Job]) -> list[Job]:
    """The sample for the oracle: half where a dropout reaches a BatchNorm, half where none does.

    A model without BatchNorm has nothing to compare; detection and optical flow take more than
    images and are left out.
    """
    rows = [
        row
        for row in current(table)
        if row["outcome"] in ("audited", "in part")
        and int(row["batch_norms"] or 0)
        and not re.search(r"rcnn|retinanet|fcos|^ssd|raft", row["name"])
    ]
    columns = ("straight", "merged", "behind_norm", "stochastic_depth")
    # An order that does not depend on which rows there are: a table that grows changes little.
    rows.sort(key=lambda row: random.Random("|".join(key_of(row))).random())
    reached = [row for row in rows if any(int(row[column] or 0) for column in columns)]
    others = [row for row in rows if row not in reached]
    half = SAMPLE // 2
    sample = map(job_of, reached[:half] + others[:half])
    keys = {job.key for job in chosen}  # a part of the sample, and no other
    return [job for job in sample if replace(job, argument="").key in keys]


# -- running ---------------------------------------------------------------------------------------


def grow(step: str, table: Table, jobs: Iterable[Job]) -> None:
    """Adds the rows that a table lacks, one by one.

    Raises:
        UserError: another process is adding rows to it.
    """
    with held(table.file) as ours, Worker(ROWS[step], SECONDS[step], MEMORY) as worker:
        if not ours:
            raise UserError(
                f"another process is adding rows to {table.file}: wait for it, or give another "
                "--out"
            )
        table.cut_unfinished()
        done = {key_of(row) for row in table.rows()}
        for job in jobs:
            if job.key in done:
                continue
            row = worker.row(job)
            day = datetime.now(UTC).date().isoformat()
            table.append(dict(zip(KEY, job.key, strict=True)) | {"date": day} | row)
            done.add(job.key)
            said = f"{job.library} {job.name} {job.argument}".strip()
            text = f"{step} {len(done)}: {said}: {row['outcome']} {row.get('note', '')}"
            print(text.rstrip(), flush=True)


def main(arguments: list[str]) -> int:
    """Runs the steps that are named, or all of them."""
    parser = Parser(
        "study in-the-wild",
        "Audit every architecture of timm and torchvision. A run that was stopped goes on where it "
        "stopped.",
        loads=False,
    )
    parser.add_argument(
        "steps",
        nargs="*",
        metavar="STEP",
        help="audit (where dropout and BatchNorm stand), ratios (the variance shift of those at "
        "fault), oracle (a sample held against what the random seed changes in fact), page (of "
        "what is known); all by default",
    )
    parser.add_argument("--models", default="*", help="names such as 'densenet*'; all by default")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("docs/study"),
        help="folder of the tables (default: docs/study)",
    )
    options = parser.parse_args(arguments)
    if unknown := [step for step in options.steps if step not in STEPS]:
        raise UserError(f"no step named {unknown[0]!r} (steps: {', '.join(STEPS)})")
    chosen = [job for job in registered() if fnmatch(job.name, options.models)]
    if not chosen:
        raise UserError(f"--models {options.models}: timm and torchvision have no such model")
    ready_folder(options.out)
    tables = {step: Table(_file(options.out, step), COLUMNS[step]) for step in ROWS}
    audited = tables["audit"]
    todo: dict[str, Callable[[], Iterable[Job]]] = {
        "audit": lambda: audits(audited, chosen),
        "ratios": lambda: faulty(audited, chosen),
        "oracle": lambda: sampled(audited, chosen),
    }
    for step in options.steps or STEPS:
        if step == "page":
            rows = {name: current(table) for name, table in tables.items()}
            write_page(options.out, rows, len(registered()))
        else:
            grow(step, tables[step], todo[step]())
    return 0


def _file(folder: Path, step: str) -> Path:
    return folder / ("in_the_wild.csv" if step == "audit" else f"in_the_wild_{step}.csv")
