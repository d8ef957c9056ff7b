"""Where dropout stands: before BatchNorm, before activations, on outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from zoo.core.text import counted
from zoo.diagnostics.rules.base import Finding, Subject, name, rule, scales
from zoo.diagnostics.trace.graph import MERGED, STRAIGHT, Node, way
from zoo.diagnostics.trace.operations import DROPOUTS, NORMS, PASS_THROUGH


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


def _in_module(node: Node) -> str:
    return f"{node.op} in {name(node.module)}"


def _before_batch_norm(subject: Subject, kinds: Callable[[str], bool]) -> Iterator[Any]:
    """(BatchNorm, dropout, level, number of further dropouts) for every BatchNorm reached."""
    eval_noise = {
        (node.module, node.op)
        for node in (subject.evaluation.dropouts if subject.evaluation else [])
        if node.dropout is not None and node.op not in DROPOUTS
    }
    reached: list[tuple[Node, dict[Node, int]]] = []
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
        if near:
            reached.append((norm, near))
    # The graph says that it reads a dropout; whether a value of that is left, two forwards say.
    changed = subject.changed(list(dict.fromkeys(one for _, near in reached for one in near)))
    seen: set[tuple[str, int]] = set()
    for norm, near in reached:
        # The nearest in level, then the last before the BatchNorm: the one to move.
        dropout = min(near, key=lambda d: (near[d], -d.index))
        if norm in changed and (norm.module, near[dropout]) not in seen:
            seen.add((norm.module, near[dropout]))
            yield norm, dropout, near[dropout], len(near) - 1


@rule(
    "dropout-before-bn",
    "error",
    "BatchNorm after dropout learns a running variance that evaluation does not have.",
    source="Li et al., CVPR 2019, section 3; a residual sum or concatenation in between: "
    "Kim et al., UAI 2023",
    fix="drop only after the last BatchNorm, use stochastic depth or augmentation instead, or "
    "replace BatchNorm; zoo.recalibrate corrects trained weights",
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
        # Alpha dropout keeps the variance of inputs that are standardized, and of no others. Noise
        # that multiplies is dropout by another name; other noise may be small, or augmentation.
        uncertain = dropout.dropout.kind == "alpha" or (
            dropout.dropout.kind == "noise" and dropout.dropout.function != "mul"
        )
        error = straight and not uncertain
        between = " → ".join(steps) if steps else "nothing"
        also = f", and {more} more" if more else ""
        yield Finding(
            norm.module,
            f"{_noise(dropout)} in {name(dropout.module)} reaches BatchNorm {name(norm.module)} "
            f"{'straight' if straight else 'by way of a sum or concatenation'} (between: "
            f"{between}){also}",
            origin=dropout.module,
            path=steps,
            source=norm.source or dropout.source,
            severity="error" if error else "warning",
        )


@rule(
    "stochastic-depth-before-bn",
    "info",
    "Stochastic depth before BatchNorm shifts its variance a little; this is common practice.",
    source="Huang et al., ECCV 2016, section 3 (ResNet with BatchNorm); Tan & Le, ICML 2019, "
    "section 5.2",
    fix="nothing, unless zoo.variance_shift shows more than a few percent",
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
            norm.module,
            f"{_noise(dropout)} in {name(dropout.module)} reaches BatchNorm {name(norm.module)}",
            origin=dropout.module,
            path=way(norm, dropout, subject.reached),
            source=norm.source or dropout.source,
        )


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
    "Element-wise dropout on a feature map does little: neighboring values are much the same.",
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
                node.module,
                f"element-wise {_noise(node)} in {name(node.module)} on a feature map "
                f"{list(node.shape)}",
                origin=node.module,
                source=node.source,
            )


@rule(
    "high-drop-rate",
    "warning",
    "The drop rate is above the recommended range; it is the share dropped, not the share kept.",
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
                node.module,
                f"{_noise(node)} in {name(node.module)}: {what} seldom helps above {limit:g}",
                origin=node.module,
                source=node.source,
            )


# What an activation makes of a dropped unit, or of one that was scaled by 1 / (1 - p).
_NONZERO_AT_ZERO = frozenset(
    """sigmoid softplus softmax log_softmax softmin hardsigmoid logsigmoid cos exp""".split()
)
_NONHOMOGENEOUS = frozenset(
    """tanh gelu silu mish elu selu celu hardswish hardtanh relu6 softsign tanhshrink""".split()
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
    "The activation of a dropped unit is not zero: sigmoid(0) is 0.5.",
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
            node.module,
            f"{_noise(node)} in {name(node.module)} stands before {_in_module(activation)}: what "
            "is dropped does not come out as zero",
            origin=node.module,
            source=activation.source or node.source,
        )


@rule(
    "dropout-before-nonhomogeneous-activation",
    "info",
    "The activation changes the scaling by 1 / (1 - p): tanh(2x) is not 2 tanh(x). "
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
            node.module,
            f"{_noise(node)} in {name(node.module)} stands before {_in_module(activation)}",
            origin=node.module,
            source=activation.source or node.source,
        )


@rule(
    "dropout-on-output",
    "warning",
    "The model's output is dropped: the loss sees zeros in place of predictions.",
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
        while (node.op in PASS_THROUGH or scales(node)) and node.inputs:
            node = node.inputs[0]
        if node.dropout is not None and node.dropout.kind in ("element-wise", "spatial", "alpha"):
            yield Finding(
                node.module,
                f"{_noise(node)} in {name(node.module)} is the last thing before the output",
                origin=node.module,
                source=node.source,
            )


@rule(
    "dropout-active-in-eval",
    "error",
    "Dropout is active in evaluation mode: predictions change from call to call.",
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
                node.module,
                f"{_noise(node)} in {name(node.module)} is active in evaluation mode",
                origin=node.module,
                source=node.source,
            )


_RANKS = {"dropout1d": 3, "dropout2d": 4, "dropout3d": 5}


@rule(
    "dropout-rank-mismatch",
    "warning",
    "Spatial dropout got a tensor of the wrong rank: what it drops are not channels.",
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
                node.module,
                f"{node.op} in {name(node.module)} got {counted(len(node.shape), 'dimension')} "
                f"{list(node.shape)} and expects {expected}",
                origin=node.module,
                source=node.source,
            )


@rule(
    "dropout-never-called",
    "warning",
    "A dropout module is never called, and its rate is not used elsewhere.",
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
                path,
                f"{name(path)} (rate {rate:g}) was not run, though {name(parent)} was",
                origin=path,
            )
