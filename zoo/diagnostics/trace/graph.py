"""The graph of a recorded forward, and what depends on what in it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from zoo.diagnostics.trace.operations import MERGE, NORMS, PASS_THROUGH


@dataclass(eq=False, slots=True)
class DropoutCall:
    """Noise that training puts on data.

    ``kind``: ``element-wise``, ``spatial`` (whole channels), ``block``, ``path`` (whole samples:
    stochastic depth), ``attention``, ``recurrent``, ``alpha``, ``weight`` (DropConnect),
    ``noise`` (added, or of unknown form), ``selection`` (which entries are read).
    """

    kind: str
    rate: float | None  # the share dropped; None where the recording cannot tell
    function: str  # the torch function, for messages


@dataclass(eq=False, slots=True)
class BatchNormCall:
    """A normalization with running statistics."""

    live: bool  # normalizes by the batch in training, and by running statistics in evaluation
    values: int  # that share a mean in this forward: batch × positions
    positions: int  # a sample
    momentum: float | None  # None: cumulative
    holder: str  # path of the module that holds the statistics
    per_sample: bool = False  # InstanceNorm: only what it remembers rests on other samples


@dataclass(eq=False, slots=True)
class Node:
    """One call of a torch function, or a source (``input``, ``parameter``, ``constant``)."""

    index: int
    op: str
    module: str  # path of the module whose forward makes the call; "" is the model itself
    inputs: tuple[Node, ...]
    shape: tuple[int, ...]
    source: str  # file:line
    data: bool  # depends on the model's inputs
    random: bool  # depends on random numbers
    draws: bool = False  # draws them itself
    call: int = -1  # which of all calls of torch functions it is; -1: it stands for none
    dropout: DropoutCall | None = None
    batch_norm: BatchNormCall | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<{self.index} {self.op} {list(self.shape)} in {self.module or 'the model'}>"


@dataclass(slots=True)
class Trace:
    """What one forward did."""

    mode: str  # training, or evaluation
    nodes: list[Node]  # in order: inputs before their consumers
    outputs: list[Node]
    calls: Counter[str]  # of each module, by path
    notes: list[str]  # what could not be followed
    unseen: list[str] = field(default_factory=list)  # paths of modules that hide what they do
    decided: bool = False  # random numbers chose this way among several
    by_values: bool = False  # values of the inputs were read, which may have chosen it
    seed: int = 0
    # Paths of tensors that the model holds and this forward has changed according to the data, but
    # for the statistics of the normalizations that are recorded.
    moved: list[str] = field(default_factory=list)
    unaudited: list[str] = field(default_factory=list)  # sentences: what ran and was not seen

    @property
    def dropouts(self) -> list[Node]:
        return [node for node in self.nodes if node.dropout is not None]

    @property
    def batch_norms(self) -> list[Node]:
        return [node for node in self.nodes if node.batch_norm is not None]


def through(node: Node) -> Node:
    """The call whose values a node holds, before changes of shape and type."""
    while node.op in PASS_THROUGH and node.inputs:
        node = node.inputs[0]
    return node


def applied(nodes: list[Node]) -> set[str]:
    """Paths of the held tensors that have one value for each channel of data that they meet."""
    carried: list[dict[str, int]] = []  # by node without data: the tensors that it is made of
    found: set[str] = set()
    for node in nodes:
        if "held" in node.facts:
            carried.append({node.facts["held"]: math.prod(node.shape)})
            continue
        within: dict[str, int] = {}
        for parent in node.inputs:
            within |= carried[parent.index]
        if within and node.data:
            shapes = [node.shape, *(parent.shape for parent in node.inputs if parent.data)]
            channels = {s[axis] for s in shapes if len(s) > 1 for axis in (1, -1)}
            found |= {path for path, values in within.items() if values in channels}
            within = {}
        carried.append(within)
    return found


def unknown_statistics(training: Trace, evaluation: Trace | None) -> list[str]:
    """Paths of running statistics that the model's own code keeps, outside what is recorded.

    Tensors that a training forward moves according to the data, evaluation leaves alone, and
    applies to data channel by channel. A codebook, an average of weights and a state that
    evaluation moves too are none.
    """
    if evaluation is None:
        return training.moved
    read = applied(evaluation.nodes) - set(evaluation.moved)
    return [path for path in training.moved if path in read]


def beyond(nodes: list[Node], wanted: Callable[[Node], bool]) -> list[bool]:
    """For every node, whether it depends on one that is wanted, or is one."""
    found: list[bool] = []
    for node in nodes:
        found.append(wanted(node) or any(found[parent.index] for parent in node.inputs))
    return found


STRAIGHT, MERGED, RENORMALIZED, STANDARDIZED = range(4)


def reach(nodes: list[Node]) -> list[dict[Node, int]]:
    """For every node, the dropouts it depends on, each with the level of its nearest path.

    Levels: 0 straight; 1 only by way of a sum or concatenation with data that it has not touched;
    2 after a live BatchNorm; 3 after LayerNorm, GroupNorm, InstanceNorm or RMSNorm.
    """
    reached: list[dict[Node, int]] = []
    nothing: dict[Node, int] = {}
    for node in nodes:
        streams = [parent for parent in node.inputs if reached[parent.index]]
        if len(streams) == 1:
            levels = reached[streams[0].index]
        elif streams:
            levels = dict(reached[streams[0].index])
            for parent in streams[1:]:
                for dropout, level in reached[parent.index].items():
                    levels[dropout] = min(level, levels.get(dropout, level))
        else:
            levels = nothing
        if levels and (floor := floor_of(node)):
            others = [parent for parent in node.inputs if parent.data]
            levels = {
                dropout: max(level, floor)
                # A sum dilutes what one of its terms does not carry.
                if floor > MERGED or any(dropout not in reached[p.index] for p in others)
                else level
                for dropout, level in levels.items()
            }
        if node.dropout is not None:
            levels = {**levels, node: STRAIGHT}
        reached.append(levels)
    return reached


def floor_of(node: Node) -> int:
    if node.batch_norm is not None and node.batch_norm.live:
        return RENORMALIZED
    if node.op in NORMS:
        return STANDARDIZED
    return MERGED if node.op in MERGE else STRAIGHT


def way(node: Node, dropout: Node, reached: list[dict[Node, int]]) -> tuple[str, ...]:
    """The functions called between a dropout and a node that depends on it, by the nearest path."""
    steps: list[str] = []
    while node is not dropout:
        node = min(
            (parent for parent in node.inputs if dropout in reached[parent.index]),
            key=lambda parent: (reached[parent.index][dropout], parent.index),
        )
        if node is not dropout:
            steps.append(node.op)
    return tuple(reversed(steps))
