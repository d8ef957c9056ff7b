"""What the audit looks for: each rule a small function over a recorded forward.

A rule has an id, a severity, a sentence, the source it rests on, a fix, and two pieces of Python
that define ``model``, ``inputs`` and, where needed, ``options``: one that triggers it and one that
does not. Both are printed by ``python -m zoo audit --explain RULE`` and run by the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from textwrap import dedent
from typing import Any

import torch
from torch import nn

from zoo.diagnostics.trace import (
    DROPOUTS,
    MERGED,
    NORMS,
    PASS_THROUGH,
    STRAIGHT,
    Node,
    Trace,
    paths,
    reach,
    through,
    way,
)

SEVERITIES = ("info", "warning", "error")


@dataclass(frozen=True)
class Finding:
    """One place at fault."""

    rule: str
    severity: str  # error, warning or info
    module: str  # path at fault; "" is the model itself
    message: str
    origin: str = ""  # for a rule about dropout: path of the module that makes the dropout call
    path: tuple[str, ...] = ()  # functions called between the two ends
    source: str = ""  # file:line of the call; "" where no code of the model's own makes it


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
    paths: dict[int, str] = field(init=False)

    def __post_init__(self) -> None:
        self.paths = paths(self.model)

    @cached_property
    def reached(self) -> list[dict[Node, int]]:
        return reach(self.training.nodes)

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
            if consumer.op in PASS_THROUGH or _scales(consumer):
                yield from self.consumers_through(consumer)
            else:
                yield consumer


Check = Callable[[Subject], Iterable[Finding]]


@dataclass(frozen=True)
class Rule:
    """A practice, and how to see whether a model keeps it."""

    id: str
    severity: str  # the gravest that it gives
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
        RULES[id] = Rule(id, severity, sentence, source, fix, dedent(bad), dedent(good), check)
        return check

    return register


def name(path: str) -> str:
    return path or "the model"


def _rate(node: Node) -> str:
    assert node.dropout is not None
    return "" if node.dropout.rate is None else f" (rate {node.dropout.rate:g})"


def _noise(node: Node) -> str:
    """What a message calls a dropout."""
    assert node.dropout is not None
    words = {
        "spatial": "spatial dropout",
        "attention": "attention dropout",
        "recurrent": "recurrent dropout",
        "alpha": "alpha dropout",
        "path": "stochastic depth",
        "block": "block dropout",
        "weight": "DropConnect",
        "noise": "noise",
    }
    return words.get(node.dropout.kind, "dropout") + _rate(node)


def _scales(node: Node) -> bool:
    """Multiplication or division by a number."""
    return node.op in ("mul", "div") and len(node.inputs) == 1 and node.dropout is None


def _in_module(node: Node) -> str:
    return f"{node.op} in {name(node.module)}"


# -- dropout and BatchNorm -----------------------------------------------------------------------


def _before_batch_norm(subject: Subject, kinds: Callable[[str], bool]) -> Iterator[Any]:
    """(BatchNorm, dropout, level, number of further dropouts) for every BatchNorm reached."""
    eval_noise = {
        (node.module, node.op)
        for node in (subject.evaluation.dropouts if subject.evaluation else [])
        if node.dropout is not None and node.op not in DROPOUTS
    }
    seen: set[tuple[str, int]] = set()
    for norm in subject.training.batch_norms:
        assert norm.batch_norm is not None
        if not norm.batch_norm.live:
            continue
        levels: dict[Node, int] = {}
        for parent in norm.inputs:
            levels |= subject.reached[parent.index]
        near = {
            dropout: level
            for dropout, level in levels.items()
            if level <= MERGED
            and kinds(dropout.dropout.kind)  # type: ignore[union-attr]
            # Noise that evaluation has too (a VAE's sampling) shifts nothing.
            and (dropout.module, dropout.op) not in eval_noise
        }
        if not near:
            continue
        # The nearest in level, then the last before the BatchNorm: the one to move.
        dropout = min(near, key=lambda d: (near[d], -d.index))
        if (norm.module, near[dropout]) not in seen:
            seen.add((norm.module, near[dropout]))
            yield norm, dropout, near[dropout], len(near) - 1


@rule(
    "dropout-before-bn",
    "error",
    "BatchNorm after dropout normalises evaluation by a variance that only training has.",
    source="Li et al., CVPR 2019, section 3; a residual sum or concatenation in between: "
    "Kim et al., UAI 2023",
    fix="drop only after the last BatchNorm, use stochastic depth or augmentation instead, or "
    "replace BatchNorm; trained weights can be mended by zoo.recalibrate",
    bad="""
        model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 8), nn.BatchNorm1d(8))
        inputs = (torch.randn(16, 8),)
    """,
    good="""
        model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 8))
        inputs = (torch.randn(16, 8),)
    """,
)
def dropout_before_bn(subject: Subject) -> Iterator[Finding]:
    found = _before_batch_norm(subject, lambda kind: kind not in ("path", "selection"))
    for norm, dropout, level, more in found:
        steps = way(norm, dropout, subject.reached)
        straight = level == STRAIGHT
        # Alpha dropout keeps the variance of inputs that are standardised, and of no others. Noise
        # that multiplies is dropout by another name; other noise may be small, or augmentation.
        doubtful = dropout.dropout.kind == "alpha" or (
            dropout.dropout.kind == "noise" and dropout.dropout.function != "mul"
        )
        error = straight and not doubtful
        between = " → ".join(steps) if steps else "nothing"
        also = f", and {more} more" if more else ""
        yield Finding(
            "dropout-before-bn",
            "error" if error else "warning",
            norm.module,
            f"{_noise(dropout)} in {name(dropout.module)} reaches BatchNorm {name(norm.module)} "
            f"{'straight' if straight else 'by way of a sum or concatenation'} (between: "
            f"{between}){also}",
            origin=dropout.module,
            path=steps,
            source=norm.source or dropout.source,
        )


@rule(
    "stochastic-depth-before-bn",
    "info",
    "Stochastic depth reaches a BatchNorm: the shift is small, and it is done on purpose.",
    source="Huang et al., ECCV 2016, section 3 (ResNet with BatchNorm); Tan & Le, ICML 2019, "
    "section 5.2",
    fix="nothing, unless zoo.variance_shift shows more than a few per cent",
    bad="""
        from torchvision.ops import StochasticDepth

        class Residual(nn.Module):
            def __init__(self):
                super().__init__()
                self.branch = nn.Sequential(nn.Conv2d(4, 4, 1), StochasticDepth(0.2, "row"))
                self.norm = nn.BatchNorm2d(4)

            def forward(self, x):
                return self.norm(x + self.branch(x))

        model, inputs = Residual(), (torch.randn(8, 4, 5, 5),)
    """,
    good="""
        model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
        inputs = (torch.randn(8, 4, 5, 5),)
    """,
)
def stochastic_depth_before_bn(subject: Subject) -> Iterator[Finding]:
    for norm, dropout, _, _ in _before_batch_norm(subject, lambda kind: kind == "path"):
        yield Finding(
            "stochastic-depth-before-bn",
            "info",
            norm.module,
            f"{_noise(dropout)} in {name(dropout.module)} reaches BatchNorm {name(norm.module)}",
            origin=dropout.module,
            path=way(norm, dropout, subject.reached),
            source=norm.source or dropout.source,
        )


# -- where dropout stands --------------------------------------------------------------------------

_FEATURES = ("conv", "batch_norm", "interpolate", "upsample", "grid_sample")


def _is_feature_map(node: Node) -> bool:
    """Whether a tensor (B, C, H, W) or (B, C, D, H, W) holds what convolutions made."""
    if len(node.shape) not in (4, 5) or all(size == 1 for size in node.shape[2:]):
        return False
    while True:
        if node.op.startswith(_FEATURES) or "pool" in node.op:
            return True
        if node.op in ("linear", "matmul", "bmm", "softmax", "baddbmm", "einsum", *NORMS):
            return False
        streams = [parent for parent in node.inputs if parent.data]
        if not streams:  # an image, unless it holds indices
            return node.op == "input" and len(node.shape) in (4, 5)
        node = streams[0]


@rule(
    "elementwise-dropout-on-feature-map",
    "warning",
    "Element-wise dropout on a feature map does little: neighbouring values tell what is missing.",
    source="Tompson et al., CVPR 2015, section 3.2 (spatial dropout)",
    fix="nn.Dropout2d, stochastic depth, or dropout after the pooling",
    bad="""
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Dropout(0.2), nn.Conv2d(4, 4, 3))
        inputs = (torch.randn(2, 3, 8, 8),)
    """,
    good="""
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Dropout2d(0.2), nn.Conv2d(4, 4, 3))
        inputs = (torch.randn(2, 3, 8, 8),)
    """,
)
def elementwise_dropout_on_feature_map(subject: Subject) -> Iterator[Finding]:
    for node in subject.training.dropouts:
        assert node.dropout is not None
        stream = next((parent for parent in node.inputs if parent.data), None)
        if node.dropout.kind == "element-wise" and stream and _is_feature_map(stream):
            yield Finding(
                "elementwise-dropout-on-feature-map",
                "warning",
                node.module,
                f"element-wise {_noise(node)} in {name(node.module)} on a feature map "
                f"{list(node.shape)}",
                origin=node.module,
                source=node.source,
            )


@rule(
    "high-drop-rate",
    "warning",
    "More is dropped than the guidelines go to; a drop rate is the share dropped, not kept.",
    source="Srivastava et al., JMLR 2014, section 7.3 and appendix A.4 (0.5 for hidden units); "
    "0.1 in transformers, attention included: Devlin et al. 2019, appendix A.2",
    fix="at most 0.5 on fully connected layers, 0.3 on feature maps and attention weights",
    bad="""
        model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.9), nn.Linear(8, 2))
        inputs = (torch.randn(4, 8),)
    """,
    good="""
        model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 2))
        inputs = (torch.randn(4, 8),)
    """,
)
def high_drop_rate(subject: Subject) -> Iterator[Finding]:
    for node in subject.training.dropouts:
        assert node.dropout is not None
        stream = next((parent for parent in node.inputs if parent.data), node)
        on_map = node.dropout.kind in ("spatial", "block") or (
            node.dropout.kind == "element-wise" and _is_feature_map(stream)
        )
        limit, what = 0.5, "dropout"
        if node.dropout.kind == "attention":
            limit, what = 0.3, "dropout on attention weights"
        elif on_map:
            limit, what = 0.3, "dropout on feature maps"
        if node.dropout.rate is not None and node.dropout.rate > limit:
            yield Finding(
                "high-drop-rate",
                "warning",
                node.module,
                f"{_noise(node)} in {name(node.module)}: {what} seldom helps above {limit:g}",
                origin=node.module,
                source=node.source,
            )


# What an activation makes of a dropped unit, or of one that was scaled by 1 / (1 - p).
_NONZERO_AT_ZERO = frozenset(
    "sigmoid softplus softmax log_softmax softmin hardsigmoid logsigmoid cos exp".split()
)
_NONHOMOGENEOUS = frozenset(
    "tanh gelu silu mish elu selu celu hardswish hardtanh relu6 softsign tanhshrink".split()
)


def _dropout_before(subject: Subject, activations: frozenset[str]) -> Iterator[tuple[Node, Node]]:
    for node in subject.training.dropouts:
        assert node.dropout is not None
        if node.dropout.kind in ("element-wise", "spatial", "block", "alpha"):
            for consumer in subject.consumers_through(node):
                if consumer.op in activations:
                    yield node, consumer


@rule(
    "dropout-before-nonzero-activation",
    "warning",
    "The activation turns a dropped unit into something: sigmoid(0) is 0.5.",
    source="follows from the definition: Srivastava et al., JMLR 2014, section 4 drops a layer's "
    "outputs, after the activation",
    fix="drop after the activation",
    bad="""
        model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.2), nn.Sigmoid(), nn.Linear(8, 2))
        inputs = (torch.randn(4, 8),)
    """,
    good="""
        model = nn.Sequential(nn.Linear(8, 8), nn.Sigmoid(), nn.Dropout(0.2), nn.Linear(8, 2))
        inputs = (torch.randn(4, 8),)
    """,
)
def dropout_before_nonzero_activation(subject: Subject) -> Iterator[Finding]:
    for node, activation in _dropout_before(subject, _NONZERO_AT_ZERO):
        yield Finding(
            "dropout-before-nonzero-activation",
            "warning",
            node.module,
            f"{_noise(node)} in {name(node.module)} stands before {_in_module(activation)}: what "
            "is dropped does not come out as zero",
            origin=node.module,
            source=activation.source or node.source,
        )


@rule(
    "dropout-before-nonhomogeneous-activation",
    "info",
    "The activation bends the scaling by 1 / (1 - p): tanh(2x) is not 2 tanh(x). "
    "Before or after ReLU is the same.",
    source="follows from the definition: Srivastava et al., JMLR 2014, section 4",
    fix="drop after the activation",
    bad="""
        model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.2), nn.Tanh(), nn.Linear(8, 2))
        inputs = (torch.randn(4, 8),)
    """,
    good="""
        model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.2), nn.ReLU(), nn.Linear(8, 2))
        inputs = (torch.randn(4, 8),)
    """,
)
def dropout_before_nonhomogeneous_activation(subject: Subject) -> Iterator[Finding]:
    for node, activation in _dropout_before(subject, _NONHOMOGENEOUS):
        yield Finding(
            "dropout-before-nonhomogeneous-activation",
            "info",
            node.module,
            f"{_noise(node)} in {name(node.module)} stands before {_in_module(activation)}",
            origin=node.module,
            source=activation.source or node.source,
        )


@rule(
    "dropout-on-output",
    "warning",
    "The model's own output is dropped: the loss sees zeros where there was an answer.",
    source="Srivastava et al., JMLR 2014, section 4: input and hidden units are dropped",
    fix="drop before the last layer",
    bad="""
        model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2), nn.Dropout(0.2))
        inputs = (torch.randn(4, 8),)
    """,
    good="""
        model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))
        inputs = (torch.randn(4, 8),)
    """,
)
def dropout_on_output(subject: Subject) -> Iterator[Finding]:
    for node in dict.fromkeys(subject.training.outputs):
        while (node.op in PASS_THROUGH or _scales(node)) and node.inputs:
            node = node.inputs[0]
        if node.dropout is not None and node.dropout.kind in ("element-wise", "spatial", "alpha"):
            yield Finding(
                "dropout-on-output",
                "warning",
                node.module,
                f"{_noise(node)} in {name(node.module)} is the last thing before the output",
                origin=node.module,
                source=node.source,
            )


@rule(
    "dropout-active-in-eval",
    "error",
    "Dropout goes on in evaluation mode: predictions change from call to call.",
    source="Srivastava et al., JMLR 2014, section 4: no unit is dropped at test time",
    fix="F.dropout(x, p, training=self.training); scaled_dot_product_attention(..., dropout_p=p if "
    "self.training else 0.0); for MC dropout on purpose, zoo.mc_dropout",
    bad="""
        class Forgetful(nn.Module):
            def __init__(self):
                super().__init__()
                self.head = nn.Linear(8, 2)

            def forward(self, x):
                return self.head(F.dropout(x, 0.2))

        model, inputs = Forgetful(), (torch.randn(4, 8),)
    """,
    good="""
        class Careful(nn.Module):
            def __init__(self):
                super().__init__()
                self.head = nn.Linear(8, 2)

            def forward(self, x):
                return self.head(F.dropout(x, 0.2, training=self.training))

        model, inputs = Careful(), (torch.randn(4, 8),)
    """,
)
def dropout_active_in_eval(subject: Subject) -> Iterator[Finding]:
    for node in subject.evaluation.dropouts if subject.evaluation else []:
        assert node.dropout is not None
        if node.dropout.kind not in ("noise", "selection"):  # which a generator may well need
            yield Finding(
                "dropout-active-in-eval",
                "error",
                node.module,
                f"{_noise(node)} in {name(node.module)} is active in evaluation mode",
                origin=node.module,
                source=node.source,
            )


_RANKS = {"dropout1d": 3, "dropout2d": 4, "dropout3d": 5}


@rule(
    "dropout-rank-mismatch",
    "warning",
    "Spatial dropout got a tensor of another rank: it drops something else than channels.",
    source="torch.nn.Dropout1d, Dropout2d, Dropout3d: shapes",
    fix="Dropout1d for (B, C, L), Dropout2d for (B, C, H, W), Dropout3d for (B, C, D, H, W), "
    "Dropout for (B, C)",
    bad="""
        model = nn.Sequential(nn.Linear(8, 8), nn.Dropout2d(0.2), nn.Linear(8, 2))
        inputs = (torch.randn(4, 8),)
    """,
    good="""
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout2d(0.2), nn.Conv2d(4, 4, 3))
        inputs = (torch.randn(4, 3, 8, 8),)
    """,
)
def dropout_rank_mismatch(subject: Subject) -> Iterator[Finding]:
    for node in subject.training.dropouts:
        expected = _RANKS.get(node.op)
        if expected is not None and len(node.shape) != expected:
            yield Finding(
                "dropout-rank-mismatch",
                "warning",
                node.module,
                f"{node.op} in {name(node.module)} got {len(node.shape)} dimensions "
                f"{list(node.shape)} and expects {expected}",
                origin=node.module,
                source=node.source,
            )


@rule(
    "dropout-never-called",
    "warning",
    "A dropout module with a rate is never run, and nobody else uses its rate.",
    source="a fault of wiring; no source needed",
    fix="call it in forward, or delete it",
    bad="""
        class Unwired(nn.Module):
            def __init__(self):
                super().__init__()
                self.drop = nn.Dropout(0.2)
                self.head = nn.Linear(8, 2)

            def forward(self, x):
                return self.head(x)

        model, inputs = Unwired(), (torch.randn(4, 8),)
    """,
    good="""
        class Wired(nn.Module):
            def __init__(self):
                super().__init__()
                self.drop = nn.Dropout(0.2)
                self.head = nn.Linear(8, 2)

            def forward(self, x):
                return self.head(self.drop(x))

        model, inputs = Wired(), (torch.randn(4, 8),)
    """,
)
def dropout_never_called(subject: Subject) -> Iterator[Finding]:
    calls = subject.training.calls
    # Attention takes a module's rate without calling the module.
    used = {(n.module, n.dropout.rate) for n in subject.training.dropouts if n.dropout}
    containers = (nn.ModuleList, nn.ModuleDict)
    modules = {subject.paths[id(m)]: m for m in subject.model.modules()}
    for path, module in modules.items():
        rate = getattr(module, "p", None)
        if not isinstance(module, nn.modules.dropout._DropoutNd) or not rate or calls[path]:
            continue
        parent = path.rpartition(".")[0]
        while isinstance(modules.get(parent), containers):
            parent = parent.rpartition(".")[0]
        # A part of the model that did not run at all says nothing.
        if path and calls[parent] and (parent, rate) not in used:
            yield Finding(
                "dropout-never-called",
                "warning",
                path,
                f"{name(path)} (rate {rate:g}) was not run, though {name(parent)} was",
                origin=path,
            )


# -- BatchNorm -------------------------------------------------------------------------------------


def _live(subject: Subject) -> Iterator[tuple[Node, Any]]:
    for node in subject.training.batch_norms:
        if node.batch_norm is not None and node.batch_norm.live:
            yield node, node.batch_norm


@rule(
    "bn-one-value-per-sample",
    "error",
    "A channel has one value a sample: its statistics rest on the batch size alone, and a batch "
    "of one cannot be normalised.",
    source="Ioffe & Szegedy, ICML 2015, section 3.2: the statistics are over batch and positions",
    fix="fine for large batches, with drop_last; else normalise before the pooling, or use "
    "LayerNorm (info; an error where the example is a batch of one)",
    bad="""
        model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        inputs = (torch.randn(4, 3, 8, 8),)
    """,
    good="""
        model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1))
        inputs = (torch.randn(4, 3, 8, 8),)
    """,
)
def bn_one_value_per_sample(subject: Subject) -> Iterator[Finding]:
    for node, norm in _live(subject):
        if norm.positions == 1:
            alone = norm.values == 1
            yield Finding(
                "bn-one-value-per-sample",
                "error" if alone else "info",
                node.module,
                f"BatchNorm {name(node.module)} normalises {list(node.shape)}, one value a "
                "channel and sample" + (": training on a batch of one fails" if alone else ""),
                source=node.source,
            )


@rule(
    "bn-small-batch",
    "warning",
    "BatchNorm's statistics of a small batch are noise; its error grows as the batch shrinks.",
    source="Wu & He, ECCV 2018, section 4.1 (below 16 a device)",
    fix="a batch of at least 16 a device, SyncBatchNorm, GroupNorm, or frozen statistics",
    bad="""
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        inputs, options = (torch.randn(2, 3, 8, 8),), {"batch_size": 4}
    """,
    good="""
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        inputs, options = (torch.randn(2, 3, 8, 8),), {"batch_size": 64}
    """,
)
def bn_small_batch(subject: Subject) -> Iterator[Finding]:
    synchronised = {
        subject.paths[id(m)] for m in subject.model.modules() if isinstance(m, nn.SyncBatchNorm)
    }
    norms = [(node, norm) for node, norm in _live(subject) if node.module not in synchronised]
    if subject.batch_size is not None and subject.batch_size < 16 and norms:
        first = norms[0][0]
        yield Finding(
            "bn-small-batch",
            "warning",
            first.module,
            f"{len(norms)} BatchNorm layers, the first {name(first.module)}, are to be trained on "
            f"batches of {subject.batch_size}",
            source=first.source,
        )


@rule(
    "bn-momentum-convention",
    "warning",
    "BatchNorm's momentum is the weight of the new batch here, not of the old average.",
    source="torch.nn.BatchNorm2d: momentum (0.1 is 0.9 elsewhere)",
    fix="1 - momentum of the other library: 0.1 for 0.9, 0.01 for 0.99",
    bad="""
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.9))
        inputs = (torch.randn(2, 3, 8, 8),)
    """,
    good="""
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.1))
        inputs = (torch.randn(2, 3, 8, 8),)
    """,
)
def bn_momentum_convention(subject: Subject) -> Iterator[Finding]:
    for path, nodes in _by_module(node for node, _ in _live(subject)).items():
        norm = nodes[0].batch_norm
        if norm is not None and norm.momentum is not None and norm.momentum > 0.5:
            yield Finding(
                "bn-momentum-convention",
                "warning",
                path,
                f"BatchNorm {name(path)} has momentum {norm.momentum:g}: its running statistics "
                "are those of the last batch or two",
                source=nodes[0].source,
            )


def _by_module(nodes: Iterable[Node]) -> dict[str, list[Node]]:
    grouped: dict[str, list[Node]] = {}
    for node in nodes:
        grouped.setdefault(node.module, []).append(node)
    return grouped


@rule(
    "bn-shared",
    "warning",
    "One BatchNorm normalises several places: each by its own batch in training, all by a mixture "
    "of their statistics in evaluation.",
    source="separate statistics for separate distributions: Xie et al., CVPR 2020, section 3.2",
    fix="one BatchNorm for each place; what is before it may be shared",
    bad="""
        class Twice(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

            def forward(self, x):
                return self.norm(self.conv(self.norm(x).relu()))

        model, inputs = Twice(), (torch.randn(4, 4, 5, 5),)
    """,
    good="""
        model = nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
        inputs = (torch.randn(4, 4, 5, 5),)
    """,
)
def bn_shared(subject: Subject) -> Iterator[Finding]:
    for path, nodes in _by_module(node for node, _ in _live(subject)).items():
        # A functional batch_norm called twice by one module may well have two sets of statistics.
        weights = [node.facts.get("weight") for node in nodes]
        if len(nodes) > 1 and (subject.training.calls[path] > 1 or len(set(weights)) == 1):
            yield Finding(
                "bn-shared",
                "warning",
                path,
                f"BatchNorm {name(path)} runs {len(nodes)} times in one forward",
                source=nodes[1].source,
            )


@rule(
    "bias-before-bn",
    "info",
    "BatchNorm subtracts the mean, and the bias before it with it.",
    source="Ioffe & Szegedy, ICML 2015, section 3.2",
    fix="bias=False",
    bad="""
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        inputs = (torch.randn(2, 3, 8, 8),)
    """,
    good="""
        model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4))
        inputs = (torch.randn(2, 3, 8, 8),)
    """,
)
def bias_before_bn(subject: Subject) -> Iterator[Finding]:
    for node, _ in _live(subject):
        layer = through(next(parent for parent in node.inputs if parent.data))
        only_reader = list(subject.consumers_through(layer)) == [node]
        # One value for each channel: a bias for each position says more than a mean.
        if only_reader and layer.facts.get("bias") == node.shape[1]:
            yield Finding(
                "bias-before-bn",
                "info",
                layer.module,
                f"the bias of {name(layer.module)} does nothing before BatchNorm "
                f"{name(node.module)}",
                source=layer.source,
            )


@rule(
    "bn-in-discriminator",
    "warning",
    "A discriminator with BatchNorm judges a batch, not a sample; gradient penalties and spectral "
    "norm assume a sample.",
    source="Gulrajani et al., NeurIPS 2017, section 4; Miyato et al., ICLR 2018, section 4",
    fix="spectral norm on every layer and no BatchNorm; LayerNorm where one is needed",
    bad="""
        class Discriminator(nn.Sequential):
            pass

        model = Discriminator(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten())
        inputs = (torch.randn(2, 3, 8, 8),)
    """,
    good="""
        from torch.nn.utils.parametrizations import spectral_norm

        class Discriminator(nn.Sequential):
            pass

        model = Discriminator(spectral_norm(nn.Conv2d(3, 4, 3)), nn.Flatten())
        inputs = (torch.randn(2, 3, 8, 8),)
    """,
)
def bn_in_discriminator(subject: Subject) -> Iterator[Finding]:
    # Nothing in the data says what a network is for: here its name must.
    roots = []
    for module in subject.model.modules():
        path = subject.paths[id(module)]
        words = f"{type(module).__name__} {path.rpartition('.')[2]}".lower()
        if path == subject.discriminator or "discriminator" in words or "critic" in words.split():
            roots.append(path)
    for node, _ in _live(subject):
        root = next((r for r in roots if not r or f"{node.module}.".startswith(f"{r}.")), None)
        if root is not None:
            yield Finding(
                "bn-in-discriminator",
                "warning",
                node.module,
                f"BatchNorm {name(node.module)} in the discriminator {name(root)}",
                source=node.source,
            )


# -- training --------------------------------------------------------------------------------------


@rule(
    "decay-on-norm-or-bias",
    "warning",
    "Weight decay pulls norm scales and biases to zero, which regularises nothing.",
    source="Goyal et al. 2017, section 5.1; He et al., CVPR 2019 (bag of tricks), section 3.1",
    fix="a parameter group with weight_decay 0 for norms and biases",
    bad="""
        model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 2))
        inputs = (torch.randn(4, 8),)
        options = {"optimizer": torch.optim.AdamW(model.parameters(), weight_decay=0.1)}
    """,
    good="""
        model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 2))
        inputs = (torch.randn(4, 8),)
        matrices = [p for p in model.parameters() if p.ndim > 1]
        others = [p for p in model.parameters() if p.ndim < 2]
        groups = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
        options = {"optimizer": torch.optim.AdamW(groups, weight_decay=0.1)}
    """,
)
def decay_on_norm_or_bias(subject: Subject) -> Iterator[Finding]:
    scales = {
        key
        for node in subject.training.nodes
        for key in (*node.facts.get("parameters", ()), node.facts.get("weight"))
    }
    names = {id(parameter): path for path, parameter in subject.model.named_parameters()}
    for group in (group for one in subject.optimizers for group in one.param_groups):
        if not group.get("weight_decay"):
            continue
        decayed = [
            names[id(p)]
            for p in group["params"]
            if id(p) in names and (p.ndim < 2 or id(p) in scales)
        ]
        by_module: dict[str, list[str]] = {}
        for path in decayed:
            module, _, parameter = path.rpartition(".")
            by_module.setdefault(module, []).append(parameter)
        for module, parameters in by_module.items():
            yield Finding(
                "decay-on-norm-or-bias",
                "warning",
                module,
                f"{' and '.join(parameters)} of {name(module)} decay by {group['weight_decay']:g}",
            )


@rule(
    "left-in-eval-at-fit",
    "error",
    "A part of the model that is to be trained is in evaluation mode: its dropout is off and its "
    "BatchNorm does not learn.",
    source="Lightning 2.2 and later leave every module in the mode it had before the fit",
    fix="model.train() before the fit; to freeze a part on purpose, freeze its parameters too",
    bad="""
        model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.2), nn.Linear(8, 2)).eval()
        inputs, options = (torch.randn(4, 8),), {"at_fit": True}
    """,
    good="""
        model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.2), nn.Linear(8, 2)).train()
        inputs, options = (torch.randn(4, 8),), {"at_fit": True}
    """,
)
def left_in_eval_at_fit(subject: Subject) -> Iterator[Finding]:
    if not subject.at_fit:
        return
    reported: list[str] = []
    idle = _idle(subject)
    for module in subject.model.modules():
        path = subject.paths[id(module)]
        if module.training or any(not r or f"{path}.".startswith(f"{r}.") for r in reported):
            continue
        if faults := [p for p in idle if not path or f"{p}.".startswith(f"{path}.")]:
            reported.append(path)
            yield Finding(
                "left-in-eval-at-fit",
                "error",
                path,
                f"{name(path)} is in evaluation mode at the start of the fit, with "
                f"{len(faults)} dropout or BatchNorm layers that training needs",
            )


def _idle(subject: Subject) -> set[str]:
    """Dropout and BatchNorm that training would use, are in evaluation mode, and not frozen."""
    modules = {subject.paths[id(m)]: m for m in subject.model.modules()}
    found = set()
    for path, module in modules.items():
        if module.training:
            continue
        if module._buffers.get("running_var") is not None:
            if any(p.requires_grad for p in module.parameters(recurse=False)):
                found.add(path)
        elif isinstance(module, nn.modules.dropout._DropoutNd) and module.p:
            # Dropout has nothing to freeze: what it stands in decides.
            owner = path
            while owner and not any(True for _ in modules[owner].parameters()):
                owner = owner.rpartition(".")[0]
            if any(p.requires_grad for p in modules[owner].parameters()):
                found.add(path)
    return found
