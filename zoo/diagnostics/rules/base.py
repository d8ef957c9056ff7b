"""What the audit looks for: each rule a small function over a recorded forward.

A rule has an id, a severity, a sentence, the source it rests on, a fix, and two pieces of Python
that define ``model``, ``inputs`` and, where needed, ``options``: one that triggers it and one that
does not. Both are printed by ``python -m zoo audit --explain RULE`` and run by the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from textwrap import dedent

import torch
from torch import Tensor, nn

from zoo.diagnostics.trace.graph import Node, Trace, reach
from zoo.diagnostics.trace.operations import PASS_THROUGH
from zoo.diagnostics.trace.snapshot import paths

SEVERITIES = ("info", "warning", "error")


@dataclass(frozen=True)
class Finding:
    """One place at fault. A rule says where and what; ``rule`` stamps id and severity on it."""

    module: str  # path at fault; "" is the model itself
    message: str
    rule: str = ""
    severity: str = ""  # error, warning or info; the rule's own where it does not say
    origin: str = ""  # for a rule about dropout: path of the module that makes the dropout call
    path: tuple[str, ...] = ()  # functions called between the two ends
    source: str = ""  # file:line of the call; "" where no code of the model's own makes it


@dataclass(frozen=True)
class Activity:
    """Which channels of one rectifier were above zero for any of the data."""

    node: Node
    active: Tensor  # (C,), of bool
    samples: int


@dataclass
class Subject:
    """What the rules look at."""

    model: nn.Module
    training: Trace  # or, where training mode fails, evaluation recorded as if it were training
    evaluation: Trace | None
    batch_size: int | None = None  # of training, a process
    optimizers: Sequence[torch.optim.Optimizer] = ()
    at_fit: bool = False  # the model is about to be trained in the modes it is in
    discriminator: str | None = None  # path of a GAN's discriminator; "" is the model itself
    activity: Sequence[Activity] = ()  # of rectified units on a loader's data
    # Takes a recorded forward and dropouts of it: the normalizations whose input they change.
    changed_by: Callable[[Trace, Collection[Node]], Collection[Node]] | None = None
    paths: dict[int, str] = field(init=False)

    def __post_init__(self) -> None:
        self.paths = paths(self.model)

    @cached_property
    def reached(self) -> list[dict[Node, int]]:
        return reach(self.training.nodes)

    def changed(self, dropouts: Collection[Node]) -> Collection[Node]:
        """The normalizations of the training forward whose input some dropouts change."""
        if self.changed_by is None or not dropouts:
            return self.training.batch_norms
        return self.changed_by(self.training, dropouts)

    @cached_property
    def consumers(self) -> dict[Node, list[Node]]:
        found: dict[Node, list[Node]] = {node: [] for node in self.training.nodes}
        for node in self.training.nodes:
            for parent in node.inputs:
                found[parent].append(node)
        return found

    def consumers_through(self, node: Node) -> Iterator[Node]:
        """Who reads a node's values, before or after changes of shape, type and scale."""
        for consumer in self.consumers[node]:
            if consumer.op in PASS_THROUGH or scales(consumer):
                yield from self.consumers_through(consumer)
            else:
                yield consumer


Check = Callable[[Subject], Iterable[Finding]]


@dataclass(frozen=True)
class Rule:
    """A practice, and how to see whether a model keeps it."""

    id: str
    severity: str  # the highest that it gives
    sentence: str
    source: str
    fix: str
    bad: str  # Python that triggers it
    good: str  # Python that does not
    check: Check


RULES: dict[str, Rule] = {}


def rule(
    id: str, severity: str, sentence: str, *, source: str, fix: str, bad: str, good: str
) -> Callable[[Check], Check]:
    def register(check: Check) -> Check:
        def stamped(subject: Subject) -> Iterator[Finding]:
            for finding in check(subject):
                yield replace(finding, rule=id, severity=finding.severity or severity)

        RULES[id] = Rule(id, severity, sentence, source, fix, dedent(bad), dedent(good), stamped)
        return stamped

    return register


def name(path: str) -> str:
    return path or "the model"


def scales(node: Node) -> bool:
    """Multiplication or division by a number."""
    return node.op in ("mul", "div") and len(node.inputs) == 1 and node.dropout is None
