"""BatchNorm by itself: its batch, its momentum, what it shares."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from zoo.diagnostics.rules.base import Finding, Subject, name, rule
from zoo.diagnostics.trace.graph import Node, through


def _live(subject: Subject) -> Iterator[tuple[Node, Any]]:
    for node in subject.training.batch_norms:
        if node.batch_norm is not None and node.batch_norm.live:
            yield node, node.batch_norm


@rule(
    "bn-one-value-per-sample",
    "error",
    "A channel has one value a sample: its statistics rest on the batch size alone, and a batch "
    "of one cannot be normalized.",
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
    synchronized = {
        subject.paths[id(m)] for m in subject.model.modules() if isinstance(m, nn.SyncBatchNorm)
    }
    norms = [(node, norm) for node, norm in _live(subject) if node.module not in synchronized]
    if subject.batch_size is not None and subject.batch_size < 16 and norms:
        first = norms[0][0]
        yield Finding(
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
    for path, nodes in _by_module(node for node, _ in _live(subject)).items():
        # A functional batch_norm called twice by one module may well have two sets of statistics.
        weights = [node.facts.get("weight") for node in nodes]
        if len(nodes) > 1 and (subject.training.calls[path] > 1 or len(set(weights)) == 1):
            yield Finding(
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
                node.module,
                f"BatchNorm {name(node.module)} in the discriminator {name(root)}",
                source=node.source,
            )
