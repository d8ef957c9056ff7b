"""Does a model keep the practices of normalization and dropout? Follows its data, and reports."""

from __future__ import annotations

import inspect
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial, reduce
from operator import or_
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoo.core.text import counted, first_line, nearest
from zoo.core.version import __version__
from zoo.diagnostics.activity import measure_activity
from zoo.diagnostics.forward import Forward, arguments, inputs_of
from zoo.diagnostics.rules.base import RULES, SEVERITIES, Activity, Finding, Rule, Subject
from zoo.diagnostics.trace.graph import Trace, unknown_statistics
from zoo.diagnostics.trace.operations import tensors_in
from zoo.diagnostics.trace.probe import changed_by
from zoo.diagnostics.trace.recorder import record
from zoo.diagnostics.trace.snapshot import to_model, unseen_modules, untouched
from zoo.errors import UserError

SHOWN_A_RULE = 5  # findings of one rule in the text; JSON and SARIF hold all


@dataclass
class Report:
    """What an audit found, the most severe first.

    ``ok`` is true where there is no error and all of the model was audited; ``unseen`` names the
    modules that were not (scripted, traced or exported ones), ``unaudited`` says in sentences what
    else was not, ``notes`` what was followed in part.
    """

    model: str
    inputs: list[list[int]]
    findings: list[Finding]
    notes: list[str] = field(default_factory=list)
    seen: dict[str, int] = field(default_factory=dict)  # kinds of dropout and BatchNorm → calls
    # module at fault → file:line of its class, for findings that no line of the model's makes
    sources: dict[str, str] = field(default_factory=dict, repr=False)
    unseen: list[str] = field(default_factory=list)  # paths; "" is the model itself
    unaudited: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return self.audited and not self.at_least("error")

    @property
    def audited(self) -> bool:
        """Whether all of the model could be followed."""
        return not self.unseen and not self.unaudited

    def at_least(self, severity: str) -> list[Finding]:
        """Lists the findings of at least this severity."""
        floor = SEVERITIES.index(severity)
        return [f for f in self.findings if SEVERITIES.index(f.severity) >= floor]

    def to_json(self) -> str:
        """Writes the whole report as a JSON object."""
        content = {
            "model": self.model,
            "inputs": self.inputs,
            "ok": self.ok,
            "audited": self.audited,
            "unseen": self.unseen,
            "unaudited": self.unaudited,
            "findings": [asdict(finding) for finding in self.findings],
            "notes": self.notes,
            "seen": self.seen,
        }
        return json.dumps(content, indent=2)

    def to_sarif(self) -> str:
        """Writes the report as SARIF 2.1.0, which code review and editors read."""
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
        """Formats the report as pairs of a line and its style."""
        shapes = ", ".join("×".join(map(str, shape)) for shape in self.inputs)
        seen = ", ".join(f"{count} {kind}" for kind, count in self.seen.items())
        nothing = "no BatchNorm and no dropout" if self.audited else "nothing seen"
        yield f"{self.model} on {shapes}: {seen or nothing}", "bold"
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
                    yield f"    at {_place(finding.source)}", "dim"
            if more := findings[SHOWN_A_RULE:]:
                yield f"  … and {len(more)} more (--json shows all)", "dim"
            yield f"  fix: {RULES[id].fix}", ""
        counts = Counter(finding.severity for finding in self.findings)
        yield "", ""
        if self.findings:
            words = [counted(counts[s], s) for s in reversed(SEVERITIES) if counts[s]]
            yield ", ".join(words), "bold"
        elif self.audited:
            yield "clean", "bold green"
        for sentence in self.unaudited:
            yield f"not audited: {sentence}", "bold red"
        if self.unseen:
            names = ", ".join(path or self.model for path in self.unseen[:SHOWN_A_RULE])
            others = len(self.unseen) - SHOWN_A_RULE
            yield (
                f"not audited: {names}{f' and {others} more' if others > 0 else ''} (scripted, "
                "traced or exported code cannot be followed; audit the model before that)",
                "bold red",
            )


def _place(source: str) -> str:
    """Where a line of source is, for people: the file of a notebook's cell exists nowhere."""
    file, _, line = source.rpartition(":")
    return str(_relative(source)) if Path(file).is_file() else f"line {line} of a notebook's cell"


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
    kwargs: Mapping[str, Any] | None = None,
    forward: Forward | None = None,
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
    of classes count for nothing where the data can tell. Where random numbers decide in Python
    which way the forward goes, several are followed. The model comes out untouched: parameters,
    buffers, modes, gradients, hooks, and the random state. Scripted, traced and exported modules
    are reported as not audited; what a round trip through numpy hides is said in the report.

    Args:
        model: any eager module, on any device; on ``meta`` nothing is computed.
        example_inputs: the forward's positional arguments, as for training, or one tuple of them,
            or one mapping of keyword arguments; a batch of 2 will do.
        kwargs: further keyword arguments.
        forward: takes the one example input and runs the model, where it is of another form.
        loader: training batches; without example inputs, the first batch's inputs are used. Rules
            about data, as ``dead-units``, need it.
        batch_size: of training, a process; the loader's, where there is one.
        optimizer: checks its weight decay.
        trainer: a Lightning Trainer at the start of a fit: gives optimizer, batch size, ``at_fit``.
        at_fit: the model is about to be trained in the modes it is in.
        discriminator: path of a GAN's discriminator, where its name does not say so; "" is the
            model itself.
        rules: ids of the rules to check; all by default.

    Raises:
        UserError: the model does not run on these inputs, or no such rule.
    """
    chosen = [_rule(id) for id in rules] if rules is not None else list(RULES.values())
    optimizers = [optimizer] if optimizer is not None else []
    measured = loader
    if trainer is not None:
        at_fit = True
        optimizers = optimizers or list(trainer.optimizers)
        loader = loader if loader is not None else trainer.train_dataloader
    if loader is not None:
        batch_size = batch_size or getattr(loader, "batch_size", None)
        if not example_inputs and kwargs is None:
            with untouched(model):  # a loader draws random numbers too
                batch = next(iter(loader), None)
            if batch is None:
                raise UserError("audit: the loader gave no batch")
            example_inputs = (inputs_of(model, batch) if forward is None else batch,)
    if not example_inputs and kwargs is None:
        raise UserError("audit needs an example input: zoo.audit(model, torch.randn(2, 3, 32, 32))")
    args, named = _arguments(example_inputs, kwargs, forward)
    unseen = unseen_modules(model)
    if "" in unseen:
        shapes = [list(tensor.shape) for tensor in tensors_in((args, named))]
        return Report(type(model).__name__, shapes, [], unseen=unseen)
    traces, evaluation, notes = _record(model, args, named, forward, at_fit)
    activity: list[Activity] = []
    if measured is not None and evaluation is not None and "dead-units" in {r.id for r in chosen}:
        activity = measure_activity(model, evaluation, measured, forward)
    found: dict[Finding, None] = {}
    for training in traces:
        subject = Subject(
            model,
            training,
            evaluation,
            batch_size=batch_size,
            optimizers=optimizers,
            at_fit=at_fit,
            discriminator=discriminator,
            activity=activity,
            changed_by=partial(changed_by, model, args, named, run=forward),
        )
        known = {(finding.rule, finding.module) for finding in found}
        found |= {
            finding: None
            for rule in chosen
            for finding in rule.check(subject)
            if (finding.rule, finding.module) not in known
        }
    findings = sorted(found, key=lambda finding: -SEVERITIES.index(finding.severity))
    return Report(
        model=type(model).__name__,
        inputs=[list(tensor.shape) for tensor in tensors_in(to_model(model, (args, named)))],
        findings=findings,
        notes=notes,
        seen=_seen(traces[0]),
        sources=_classes(model, {finding.module for finding in findings if not finding.source}),
        unseen=unseen,
        unaudited=_unaudited(traces, evaluation),
    )


def _unaudited(traces: list[Trace], evaluation: Trace | None) -> list[str]:
    """Sentences about what ran and was not seen, and statistics that no rule knows."""
    found = dict.fromkeys(one for trace in traces for one in trace.unaudited)
    statistics = list(dict.fromkeys(p for t in traces for p in unknown_statistics(t, evaluation)))
    if statistics:
        found[
            f"{', '.join(statistics[:SHOWN_A_RULE])}"
            f"{f' and {more} more' if (more := len(statistics) - SHOWN_A_RULE) > 0 else ''}: the "
            "model's own code changes them in training by the data, and evaluation applies them "
            "to data, as running statistics are"
        ] = None
    return list(found)


def _arguments(
    inputs: tuple[Any, ...], kwargs: Mapping[str, Any] | None, forward: Forward | None
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if forward is not None:
        if len(inputs) != 1 or kwargs:
            raise UserError("audit: forward= takes one example input, a tuple where it has parts")
        return inputs, {}
    args, named = arguments(inputs[0]) if len(inputs) == 1 else (inputs, {})
    return args, named | dict(kwargs or {})


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


WAYS = 8  # forwards that are followed where random numbers decide between several


def _record(
    model: nn.Module,
    inputs: tuple[Any, ...],
    kwargs: dict[str, Any],
    forward: Forward | None,
    at_fit: bool,
) -> tuple[list[Trace], Trace | None, list[str]]:
    """The training forward (in several ways, if chance decides), the evaluation forward, notes."""
    notes: dict[str, None] = {}
    traces: list[Trace] = []
    # Before a fit, the modes are what is audited; rules tell what is left in evaluation mode.
    mode = "as it is" if at_fit and model.training else "training"
    try:
        traces.append(record(model, inputs, kwargs, mode=mode, run=forward))
        if traces[0].decided:
            traces += [
                record(model, inputs, kwargs, mode=mode, run=forward, seed=seed)
                for seed in range(1, WAYS)
            ]
    except Exception as error:  # whatever a user's forward raises
        failure: Exception = error
        if not traces:
            notes[
                f"training mode fails ({type(error).__name__}: {first_line(error)}): audited in "
                "evaluation mode, where dropout that is skipped outright cannot be seen"
            ] = None
    try:
        evaluation = record(model, inputs, kwargs, mode="evaluation", run=forward)
    except Exception as error:
        if not traces:
            hint = (
                "; a tuple is positional, a mapping is keywords, forward= runs it on other inputs"
                if isinstance(failure, TypeError) and forward is None
                else ""
            )
            raise UserError(
                f"{type(model).__name__} does not run on these inputs: "
                f"{type(failure).__name__}: {first_line(failure)}{hint}"
            ) from error
        notes[f"evaluation mode fails ({type(error).__name__}: {first_line(error)})"] = None
        evaluation = None
    if not traces:
        traces.append(record(model, inputs, kwargs, mode="evaluation as training", run=forward))
    elif evaluation is not None:
        _settle_live(traces, evaluation)
    for trace in traces:
        notes |= dict.fromkeys(trace.notes)
    calls = reduce(or_, (trace.calls for trace in traces))
    for trace in traces:
        trace.calls = calls  # a module that runs in one of the ways is not forgotten
    return traces, evaluation, list(notes)


def _settle_live(traces: list[Trace], evaluation: Trace) -> None:
    """What normalizes by the batch in evaluation too does there what it does in training."""
    by_batch = {
        node.facts.get("statistics")
        for node in evaluation.batch_norms
        if node.batch_norm is not None and node.batch_norm.live
    } - {None}
    for trace in traces:
        for node in trace.batch_norms:
            if node.batch_norm is not None and node.facts.get("statistics") in by_batch:
                node.batch_norm.live = False


def _seen(trace: Trace) -> dict[str, int]:
    kinds: Counter[str] = Counter()
    for node in trace.batch_norms:
        assert node.batch_norm is not None
        kind = "InstanceNorm with running statistics" if node.batch_norm.per_sample else "BatchNorm"
        kinds[kind if node.batch_norm.live else f"frozen {kind}"] += 1
    for node in trace.dropouts:
        assert node.dropout is not None
        kind = {"path": "stochastic depth"}.get(node.dropout.kind, f"{node.dropout.kind} dropout")
        kinds[kind] += 1
    return dict(kinds)


def explain_rule(id: str) -> str:
    """Explains a rule: what it reports, why, how to fix it, and an example of each kind.

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
