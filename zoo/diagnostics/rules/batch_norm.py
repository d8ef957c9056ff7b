"""BatchNorm by itself: its batch, its momentum, what it shares."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from zoo.diagnostics.rules.base import Finding, Subject, name, rule
from zoo.diagnostics.trace.graph import Node, through

# Types, devices and copies: nothing of the shape.
_SAME_SHAPE = frozenset(
    """to type float half bfloat16 double contiguous clone detach type_as requires_grad_ cpu cuda
    get""".split()
)


def _live(subject: Subject) -> Iterator[tuple[Node, Any]]:
    """Normalizations over the batch that learn running statistics."""
    for node in subject.training.batch_norms:
        norm = node.batch_norm
        if norm is not None and norm.live and not norm.per_sample:
            yield node, norm


@rule(
    "bn-one-value-per-sample",
    "error",
    "BatchNorm sees one value per channel and sample: its statistics depend on the batch size, "
    "and a batch of one cannot be normalized.",
    source="Ioffe & Szegedy, ICML 2015, section 3.2: the statistics are over batch and positions",
    fix="fine for large batches, with drop_last; else normalize before the pooling, or use "
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
                node.module,
                f"BatchNorm {name(node.module)} normalizes {list(node.shape)}, one value a "
                "channel and sample" + (": training on a batch of one fails" if alone else ""),
                source=node.source,
                severity="error" if alone else "info",
            )


@rule(
    "bn-small-batch",
    "warning",
    "BatchNorm's statistics of a small batch are noisy; the error grows as the batch shrinks.",
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
    synchronized = {
        subject.paths[id(m)] for m in subject.model.modules() if isinstance(m, nn.SyncBatchNorm)
    }
    norms = [(node, norm) for node, norm in _live(subject) if node.module not in synchronized]
    if subject.batch_size is not None and subject.batch_size < 16 and norms:
        first, number = norms[0][0], len(norms)
        which = (
            f"BatchNorm {name(first.module)} is"
            if number == 1
            else f"{number} BatchNorm layers, the first {name(first.module)}, are"
        )
        yield Finding(
            first.module,
            f"{which} to be trained on batches of {subject.batch_size}",
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
    "One BatchNorm normalizes several places: each by its own batch in training, all by a mixture "
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
    grouped: dict[Any, list[Node]] = {}
    for node, _ in _live(subject):
        # One that normalizes by hand is known by its module alone.
        grouped.setdefault(node.facts.get("statistics", node.module), []).append(node)
    for nodes in grouped.values():
        if len(nodes) > 1:
            yield Finding(
                nodes[0].module,
                f"BatchNorm {name(nodes[0].module)} runs {len(nodes)} times in one forward",
                source=nodes[1].source,
            )


@rule(
    "bn-in-checkpoint",
    "warning",
    "BatchNorm within an activation checkpoint updates its running statistics twice a step: the "
    "backward pass runs the forward again.",
    source="torch.utils.checkpoint: the forward is run again; nn.BatchNorm2d: every forward in "
    "training mode updates",
    fix="leave BatchNorm out of the checkpointed part, or set momentum to 1 - sqrt(1 - momentum)",
    bad="""
        from torch.utils.checkpoint import checkpoint

        class Checkpointed(nn.Module):
            def __init__(self):
                super().__init__()
                self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())

            def forward(self, x):
                return checkpoint(self.body, x, use_reentrant=False)

        model, inputs = Checkpointed(), (torch.randn(4, 3, 8, 8),)
    """,
    good="""
        from torch.utils.checkpoint import checkpoint

        class Checkpointed(nn.Module):
            def __init__(self):
                super().__init__()
                self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.ReLU())

            def forward(self, x):
                return checkpoint(self.body, x, use_reentrant=False)

        model, inputs = Checkpointed(), (torch.randn(4, 3, 8, 8),)
    """,
)
def bn_in_checkpoint(subject: Subject) -> Iterator[Finding]:
    for node in subject.training.batch_norms:
        if node.facts.get("in checkpoint"):
            yield Finding(
                node.module,
                f"BatchNorm {name(node.module)} runs within a checkpoint: its statistics are "
                "updated twice a step",
                source=node.source,
            )


@rule(
    "bias-before-bn",
    "info",
    "A bias before BatchNorm has no effect: BatchNorm subtracts it with the mean.",
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
        if only_reader and layer.facts.get("bias") and _subtracted(layer, node):
            # A forward may call several layers with biases of its own module: this one is named.
            own = layer.facts["bias path"]
            bias = "" if own == f"{layer.module}.bias".lstrip(".") else own
            yield Finding(
                layer.module,
                f"the bias {bias or f'of {name(layer.module)}'} does nothing before BatchNorm "
                f"{name(node.module)}",
                source=layer.source,
            )


def _subtracted(layer: Node, norm: Node) -> bool:
    """Whether each channel of BatchNorm is given a single value of the bias of the layer before it.

    Tried out: numbers that differ along the layer's channels alone take the way to BatchNorm.
    """
    steps = []
    node = next(parent for parent in norm.inputs if parent.data)
    while node is not layer:
        steps.append(node)
        node = node.inputs[0]
    channels = layer.facts["bias"]
    axis = len(layer.shape) - 1
    if layer.op.startswith("conv"):
        axis -= next((int(one) for one in layer.op if one.isdigit()), 2)
    if layer.shape[axis] != channels:
        return False
    shape = [1] * len(layer.shape)
    shape[axis] = channels
    probe = torch.arange(channels).view(shape).expand(layer.shape)
    for step in reversed(steps):
        if step.op in _SAME_SHAPE:
            continue
        if step.op in ("view_as", "reshape_as"):
            probe = probe.reshape(step.shape)
            continue
        if "call" not in step.facts:
            return False
        func, args, kwargs = step.facts["call"]
        made = func(probe, *args, **kwargs)
        probe = made if isinstance(made, Tensor) else next(iter(made))
        if tuple(probe.shape) != step.shape:
            return False
    if probe.ndim < 2 or tuple(probe.shape) != norm.shape:
        return False
    return bool((probe == probe[(slice(1), slice(None), *[slice(1)] * (probe.ndim - 2))]).all())


@rule(
    "bn-in-discriminator",
    "warning",
    "A discriminator with BatchNorm scores a batch, not a sample; gradient penalties and spectral "
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
                node.module,
                f"BatchNorm {name(node.module)} in the discriminator {name(root)}",
                source=node.source,
            )
