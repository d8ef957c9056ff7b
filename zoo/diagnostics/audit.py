"""Does a model keep the practices of normalization and dropout? Follows its data, and reports."""

from __future__ import annotations

import inspect
import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoo.core.text import nearest
from zoo.core.version import __version__
from zoo.diagnostics.rules.base import RULES, SEVERITIES, Finding, Rule, Subject
from zoo.diagnostics.trace.graph import Trace
from zoo.diagnostics.trace.operations import tensors_in
from zoo.diagnostics.trace.recorder import first_line, record
from zoo.diagnostics.trace.snapshot import to_model, untouched
from zoo.errors import UserError

SHOWN_A_RULE = 5  # findings of one rule in the text; JSON and SARIF hold all


@dataclass
class Report:
    """What an audit found, gravest first.

    ``ok`` is true where there is no error; ``notes`` say what the audit could not see.
    """

    model: str
    inputs: list[list[int]]
    findings: list[Finding]
    notes: list[str] = field(default_factory=list)
    seen: dict[str, int] = field(default_factory=dict)  # kinds of dropout and BatchNorm → calls
    # module at fault → file:line of its class, for findings that no line of the model's makes
    sources: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def ok(self) -> bool:
        return not self.at_least("error")

    def at_least(self, severity: str) -> list[Finding]:
        """Findings as grave as ``severity``, or graver."""
        floor = SEVERITIES.index(severity)
        return [f for f in self.findings if SEVERITIES.index(f.severity) >= floor]

    def to_json(self) -> str:
        """Everything, as a JSON object."""
        content = {
            "model": self.model,
            "inputs": self.inputs,
            "ok": self.ok,
            "findings": [asdict(finding) for finding in self.findings],
            "notes": self.notes,
            "seen": self.seen,
        }
        return json.dumps(content, indent=2)

    def to_sarif(self) -> str:
        """SARIF 2.1.0, which code review and editors read."""
        used = sorted({finding.rule for finding in self.findings})
        level = {"error": "error", "warning": "warning", "info": "note"}
        driver = {
            "name": "zoo audit",
            "version": __version__,
            "rules": [
                {
                    "id": id,
                    "shortDescription": {"text": RULES[id].sentence},
                    "help": {"text": f"{RULES[id].fix} ({RULES[id].source})"},
                    "defaultConfiguration": {"level": level[RULES[id].severity]},
                }
                for id in used
            ],
        }
        results = []
        for finding in self.findings:
            location: dict[str, Any] = {
                "logicalLocations": [{"fullyQualifiedName": finding.module or self.model}]
            }
            if source := finding.source or self.sources.get(finding.module, ""):
                file, _, line = source.rpartition(":")
                location["physicalLocation"] = {
                    "artifactLocation": {"uri": _relative(file).as_posix()},
                    "region": {"startLine": int(line)},
                }
            results.append(
                {
                    "ruleId": finding.rule,
                    "ruleIndex": used.index(finding.rule),
                    "level": level[finding.severity],
                    "message": {"text": finding.message},
                    "locations": [location],
                }
            )
        return json.dumps(
            {
                "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
                "version": "2.1.0",
                "runs": [{"tool": {"driver": driver}, "results": results}],
            },
            indent=2,
        )

    def __str__(self) -> str:
        return "\n".join(line for line, _ in self.lines())

    def lines(self) -> Iterable[tuple[str, str]]:
        """The report as (line, style), for a terminal that has colors and for one that has not."""
        shapes = ", ".join("×".join(map(str, shape)) for shape in self.inputs)
        seen = ", ".join(f"{count} {kind}" for kind, count in self.seen.items())
        yield f"{self.model} on {shapes}: {seen or 'no BatchNorm and no dropout'}", "bold"
        for note in self.notes:
            yield f"note: {note}", "dim"
        by_rule: dict[str, list[Finding]] = {}
        for finding in self.findings:
            by_rule.setdefault(finding.rule, []).append(finding)
        styles = {"error": "red", "warning": "yellow", "info": "blue"}
        for id, findings in by_rule.items():
            yield "", ""
            yield f"{id}: {RULES[id].sentence}", "bold"
            for finding in findings[:SHOWN_A_RULE]:
                yield f"  {finding.severity}: {finding.message}", styles[finding.severity]
                if finding.source:
                    yield f"    at {_relative(finding.source)}", "dim"
            if more := findings[SHOWN_A_RULE:]:
                yield f"  … and {len(more)} more (--json shows all)", "dim"
            yield f"  fix: {RULES[id].fix}", ""
        counts = Counter(finding.severity for finding in self.findings)
        yield "", ""
        if self.findings:
            words = [
                f"{counts[s]} {s}{'s' if counts[s] > 1 else ''}"
                for s in reversed(SEVERITIES)
                if counts[s]
            ]
            yield ", ".join(words), "bold"
        else:
            yield "clean", "bold green"


def _relative(file: str | Path) -> Path:
    """Below the working directory or below site-packages as a short path, else as it is."""
    path = Path(file)
    parts = path.parts
    if "site-packages" in parts:
        return Path(*parts[parts.index("site-packages") + 1 :])
    try:
        return path.relative_to(os.getcwd())
    except ValueError:
        return path


def audit(
    model: nn.Module,
    *example_inputs: Any,
    kwargs: dict[str, Any] | None = None,
    loader: Iterable[Any] | None = None,
    batch_size: int | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    trainer: Any = None,
    at_fit: bool = False,
    discriminator: str | None = None,
    rules: Sequence[str] | None = None,
) -> Report:
    """Follows the data through one forward and checks where normalization and dropout stand.

    Functional and fused dropout, masks made by hand and normalization by hand are seen too; names
    of classes count for nothing where the data can tell. The model comes out untouched:
    parameters, buffers, modes, gradients, hooks, and the random state. What scripted code or a
    round trip through numpy hides is said in the report.

    Args:
        model: any eager module, on any device; on ``meta`` nothing is computed.
        example_inputs: the forward's positional arguments, as for training; a batch of 2 will do.
        kwargs: the forward's keyword arguments.
        loader: training batches; without example inputs, the first batch's input is used.
        batch_size: of training, a process; the loader's, where there is one.
        optimizer: checks its weight decay.
        trainer: a Lightning Trainer at the start of a fit: gives optimizer, loader, ``at_fit``.
        at_fit: the model is about to be trained in the modes it is in.
        discriminator: path of a GAN's discriminator, where its name does not say so; "" is the
            model itself.
        rules: ids of the rules to check; all by default.

    Raises:
        UserError: the model does not run on these inputs, or no such rule.
    """
    chosen = [_rule(id) for id in rules] if rules is not None else list(RULES.values())
    optimizers = [optimizer] if optimizer is not None else []
    if trainer is not None:
        at_fit = True
        optimizers = optimizers or list(trainer.optimizers)
        loader = loader if loader is not None else trainer.train_dataloader
    if loader is not None:
        batch_size = batch_size or getattr(loader, "batch_size", None)
        if not example_inputs and kwargs is None:
            with untouched(model):  # a loader draws random numbers too
                example_inputs = (_input_of(next(iter(loader))),)
    if not example_inputs and kwargs is None:
        raise UserError("audit needs an example input: zoo.audit(model, torch.randn(2, 3, 32, 32))")
    training, evaluation, notes = _record(model, example_inputs, kwargs, at_fit)
    subject = Subject(
        model,
        training,
        evaluation,
        batch_size=batch_size,
        optimizers=optimizers,
        at_fit=at_fit,
        discriminator=discriminator,
    )
    found = [finding for rule in chosen for finding in rule.check(subject)]
    found.sort(key=lambda finding: -SEVERITIES.index(finding.severity))
    return Report(
        model=type(model).__name__,
        inputs=[
            list(tensor.shape) for tensor in tensors_in(to_model(model, (example_inputs, kwargs)))
        ],
        findings=list(dict.fromkeys(found)),
        notes=notes,
        seen=_seen(training),
        sources=_classes(model, {finding.module for finding in found if not finding.source}),
    )


def _classes(model: nn.Module, wanted: set[str]) -> dict[str, str]:
    """file:line where the classes of some modules are defined."""
    found = {}
    for path, module in model.named_modules():
        if path in wanted:
            try:
                file = inspect.getsourcefile(type(module))
                found[path] = f"{file}:{inspect.getsourcelines(type(module))[1]}"
            except (OSError, TypeError):  # typed into a console
                continue
    return found


def _rule(id: str) -> Rule:
    if id not in RULES:
        raise UserError(f"no rule named {id!r}{nearest(id, RULES)} (rules: {', '.join(RULES)})")
    return RULES[id]


def _input_of(batch: Any) -> Any:
    return batch[0] if isinstance(batch, list | tuple) else batch


def _record(
    model: nn.Module, inputs: tuple[Any, ...], kwargs: dict[str, Any] | None, at_fit: bool
) -> tuple[Trace, Trace | None, list[str]]:
    """The training forward, the evaluation forward, and what is to be said of them."""
    notes: dict[str, None] = {}
    training: Trace | None = None
    try:
        # Before a fit, the modes are what is audited; rules tell what is left in evaluation mode.
        as_it_is = at_fit and model.training
        training = record(model, inputs, kwargs, mode="as it is" if as_it_is else "training")
    except Exception as error:  # whatever a stranger's forward raises
        failure: Exception = error
        notes[
            f"training mode fails ({type(error).__name__}: {first_line(error)}): audited in "
            "evaluation mode, where dropout that is skipped outright cannot be seen"
        ] = None
    try:
        evaluation = record(model, inputs, kwargs, mode="evaluation")
    except Exception as error:
        if training is None:
            raise UserError(
                f"{type(model).__name__} does not run on these inputs: "
                f"{type(failure).__name__}: {first_line(failure)}"
            ) from error
        notes[f"evaluation mode fails ({type(error).__name__}: {first_line(error)})"] = None
        evaluation = None
    if training is None:
        training = record(model, inputs, kwargs, mode="evaluation as training")
    notes |= dict.fromkeys(training.notes)
    return training, evaluation, list(notes)


def _seen(trace: Trace) -> dict[str, int]:
    kinds: Counter[str] = Counter()
    for node in trace.batch_norms:
        assert node.batch_norm is not None
        kinds["BatchNorm" if node.batch_norm.live else "frozen BatchNorm"] += 1
    for node in trace.dropouts:
        assert node.dropout is not None
        kind = {"path": "stochastic depth"}.get(node.dropout.kind, f"{node.dropout.kind} dropout")
        kinds[kind] += 1
    return dict(kinds)


def explain_rule(id: str) -> str:
    """A rule in full: what it says, why, how to mend it, and an example of each kind.

    Raises:
        UserError: no such rule.
    """
    rule = _rule(id)
    blocks = [
        f"{rule.id} ({rule.severity})",
        rule.sentence,
        f"Source: {rule.source}",
        f"Fix: {rule.fix}",
        "Triggers it:\n" + _indent(rule.bad),
        "Does not:\n" + _indent(rule.good),
    ]
    return "\n\n".join(blocks)


def _indent(code: str) -> str:
    return "\n".join(f"    {line}".rstrip() for line in code.strip().splitlines())
