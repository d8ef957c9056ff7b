"""Which rectified units are ever active on real data."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from zoo.diagnostics.forward import Forward, forward_batch
from zoo.diagnostics.rules.base import Activity
from zoo.diagnostics.trace.graph import Node, Trace
from zoo.diagnostics.trace.operations import base_name, plain_name, tensors_in
from zoo.diagnostics.trace.snapshot import eagerly, set_mode, untouched

RECTIFIERS = frozenset("relu relu6 threshold".split())
MOST = 1024  # samples, or batches where they are single ones


def measure_activity(
    model: nn.Module, evaluation: Trace, loader: Iterable[Any], forward: Forward | None = None
) -> list[Activity]:
    """Finds the channels of every rectifier that are above zero for any of the data.

    Args:
        model: any module; it comes out untouched.
        evaluation: its recorded forward in evaluation mode, which tells where channels are.
        loader: batches, of which the first thousand samples are used.
        forward: runs the model on a batch, where batches are of another form.
    """
    nodes = [node for node in evaluation.nodes if node.op in RECTIFIERS]
    mode = _Rectified(nodes)
    samples = 0
    with untouched(model), eagerly(model), torch.no_grad():
        set_mode(model, training=False)
        for batch in loader:
            mode.at = 0
            with mode:
                forward_batch(model, batch, forward)
            samples += len(next(iter(tensors_in(batch)), ()))
            if samples >= MOST:
                break
    found = zip(nodes, mode.active, strict=True)
    return [Activity(node, active, samples) for node, active in found if active is not None]


class _Rectified(TorchFunctionMode):
    """Sees what rectifiers give, in the order in which they were recorded."""

    def __init__(self, nodes: list[Node]) -> None:
        super().__init__()
        self.nodes = nodes
        self.at = 0
        self.active: list[Tensor | None] = [None] * len(nodes)
        self.axes = [_axis(node) for node in nodes]

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if plain_name(base_name(func)) in RECTIFIERS and self.at < len(self.nodes):
            at, self.at = self.at, self.at + 1
            axis = self.axes[at]
            if isinstance(result, Tensor) and result.ndim == len(self.nodes[at].shape):
                others = [one for one in range(result.ndim) if one != axis]
                now = (result > 0).amax(others) if others else result > 0
                before = self.active[at]
                self.active[at] = now if before is None else before | now
        return result


def _axis(node: Node) -> int:
    """The dimension of a tensor that holds its channels: what made it decides."""
    last = len(node.shape) - 1
    if len(node.shape) != 3:
        return min(1, last)
    while node.inputs:
        if node.op == "linear" or node.op == "layer_norm":
            return last
        if node.op.startswith(("conv", "batch_norm", "instance_norm", "group_norm")):
            return 1
        node = next((parent for parent in node.inputs if parent.data), node.inputs[0])
    return last
