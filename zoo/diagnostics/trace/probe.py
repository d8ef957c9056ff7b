"""Whether the values that a normalization is given depend on a dropout: tried out.

A graph says what reads what, and not what is left of it: ``torch.cat([a, d])[:4]`` reads ``d``. So
two more forwards are run with the same random numbers; in the second one the results of dropouts
are changed. A normalization whose input stays the same is not reached by them. Other normalizations
give in the second forward what they gave in the first, so that nothing passes through them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from zoo.diagnostics.trace.graph import MERGED, Node, Trace, beyond, floor_of
from zoo.diagnostics.trace.operations import (
    RECURRENT,
    base_name,
    bind_normalization,
    plain_name,
    refused,
    run_single_values,
    tensors_in,
    written,
)
from zoo.diagnostics.trace.recorder import prepared
from zoo.diagnostics.trace.snapshot import Snapshot, unwrapped


def changed_by(
    model: nn.Module,
    inputs: tuple[Any, ...],
    kwargs: dict[str, Any],
    trace: Trace,
    dropouts: Collection[Node],
    run: Callable[..., Any] | None = None,
) -> set[Node]:
    """Finds the normalizations whose input changes where the results of dropouts change.

    Args:
        model, inputs, kwargs, run: as ``record`` took them.
        trace: what was recorded.
        dropouts: calls of it that drop.

    Returns:
        Recorded normalizations: those that change, and all for which it is not known.
    """
    if any(parameter.is_meta for parameter in model.parameters()):
        return set(trace.batch_norms)  # there are no values
    dropped = set(dropouts)
    after = beyond(trace.nodes, lambda node: node in dropped)
    norms = [n for n in trace.nodes if floor_of(n) > MERGED and _watched(n) and after[n.index]]
    unknown = {node for node in trace.batch_norms if _watched(node) is None}
    first: _Forward | None = None
    for disturbed in ([], dropouts):
        with prepared(model, inputs, kwargs, trace.mode, trace.seed) as (snapshot, args, named):
            redraw(snapshot)
            forward = _Forward(norms, disturbed, first)
            try:
                with forward:
                    (run or model)(*args, **named)
            except Exception:  # whatever a user's forward raises on other numbers
                return set(trace.batch_norms)
        first = first or forward
    assert first is not None
    return unknown | {
        node
        for node in norms
        if node.batch_norm is not None
        and (
            node not in forward.inputs
            or node not in first.inputs
            or _differ(first.inputs[node], forward.inputs[node])
        )
    }


def _watched(node: Node) -> int | None:
    """The call whose argument (of BatchNorm by hand: whose result) a normalization normalizes."""
    if node.call >= 0:
        return node.call
    return node.inputs[0].call if node.inputs and node.inputs[0].call >= 0 else None


@torch.no_grad()
def redraw(snapshot: Snapshot) -> None:
    """Draws parameters anew whose values are all the same: a scale of zero hides its branch."""
    generator = torch.Generator().manual_seed(0)
    for parameter in list(snapshot.parameters.values()):
        if not parameter.is_floating_point() or parameter.is_meta or not parameter.numel():
            continue
        ends = parameter[(0,) * parameter.ndim], parameter[(-1,) * parameter.ndim]
        if bool(ends[0] == ends[1]) and bool((parameter == ends[0]).all()):
            snapshot.protect(parameter)
            parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)


class _Lost(Exception):
    """The forward takes another way than it did when it was recorded."""


class _Forward(TorchFunctionMode):
    """Keeps what normalizations are given and give, or replays it, with dropouts changed."""

    def __init__(
        self, norms: Collection[Node], dropouts: Collection[Node], first: _Forward | None
    ) -> None:
        super().__init__()
        self.native = {node.call: node for node in norms if node.call >= 0}
        self.by_hand = {_watched(node): node for node in norms if node.call < 0}
        self.dropouts = {node.call: node for node in dropouts}
        self.first = first
        self.number = 0
        self.inputs: dict[Node, Tensor] = {}
        self.outputs: dict[Node, Tensor] = {}
        self.generator = torch.Generator().manual_seed(0)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        self.number += 1
        norm = self.native.get(self.number)
        dropout = self.dropouts.get(self.number)
        raw = base_name(func)
        for node in (norm, dropout):
            if node is not None and plain_name(raw) != node.op:
                raise _Lost
        if norm is not None:
            if norm.batch_norm is not None:
                self.inputs[norm] = _value(tensors_in((args, kwargs))[0])
            if self.first is not None:
                return self._again(norm)
        call = bind_normalization(func, args, kwargs)
        if call is not None and refused(call, raw):
            result = run_single_values(func, args, kwargs, call)
        else:
            result = func(*args, **kwargs)
        if dropout is not None:
            self._disturb(dropout, tensors_in(result) or written(raw, args, kwargs), args)
        if norm is not None:
            self.outputs[norm] = _value(tensors_in(result)[0])
        by_hand = self.by_hand.get(self.number)
        if by_hand is not None:
            (tensor, *_) = tensors_in(result)
            self.inputs[by_hand] = _value(tensor)
            if self.first is None:
                self.outputs[by_hand] = self.inputs[by_hand]
            else:
                tensor.copy_(self._again(by_hand))
        return result

    def _again(self, norm: Node) -> Tensor:
        assert self.first is not None
        if norm not in self.first.outputs:
            raise _Lost
        return self.first.outputs[norm].clone()

    def _disturb(self, node: Node, tensors: list[Tensor], args: tuple[Any, ...]) -> None:
        """Changes a dropout's result: half of it is set to zero, and noise is put on the rest."""
        if node.op in RECURRENT:
            # The states of the first layer stand before the dropout between layers.
            at = next(i for i, argument in enumerate(args) if isinstance(argument, list))
            directions = 2 if bool(args[at + 5]) else 1
            tensors = [tensors[0], *(state[directions:] for state in tensors[1:])]
        for tensor in tensors:
            if not tensor.is_floating_point() or tensor.is_meta:
                raise _Lost
            shape = tensor.shape
            kept = torch.rand(shape, generator=self.generator) < 0.5
            noise = torch.randn(shape, generator=self.generator).to(tensor)
            scale = tensor.abs().max().clamp_min(1e-3) if tensor.numel() else 1
            tensor.copy_((tensor + noise * scale) * kept.to(tensor))


def _value(tensor: Tensor) -> Tensor:
    if unwrapped(tensor) is not tensor:  # within vmap, and not to be taken out of it
        raise _Lost
    return tensor.detach().clone()


def _differ(before: Tensor, after: Tensor) -> bool:
    """Whether two differ, or cannot be compared because not all values are finite."""
    if before.shape != after.shape or before.is_meta:
        return True
    return not (torch.equal(before, after) and bool(before.isfinite().all()))
