"""Run a forward many times, but what comes before its first random number only once.

A ``TorchDispatchMode`` sees the operators of one forward below all Python. Those that draw random
numbers, or read what such have made, are written down as *steps*; the others have run, and the
values that steps read of them are kept. Replaying the steps in order draws the same random numbers
as running the whole forward again, and gives the same result.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten
from torch.utils.weak import WeakIdRef, WeakTensorKeyDictionary


@dataclass(frozen=True, slots=True)
class _Slot:
    """A value that differs from sample to sample."""

    index: int


@dataclass(frozen=True, slots=True)
class _Constant:
    """A value that was computed once."""

    index: int


@dataclass(slots=True)
class _Step:
    function: Callable[..., Any]
    leaves: list[Any]  # of (args, kwargs), with _Slot and _Constant for tensors
    spec: TreeSpec
    results: list[int | None]  # slots of the result's leaves
    finished: list[int] = field(default_factory=list)  # slots that no later step reads


class Recording:
    """A forward that can be drawn from again and again.

    Args:
        forward: takes nothing and gives a tensor; called under ``torch.inference_mode``, with the
            model in the mode it is to have.
    """

    def __init__(self, forward: Callable[[], Tensor]) -> None:
        self.forward = forward
        self.bytes = 0  # of the activations that one draw makes, and of those kept

    def draws(self, count: int) -> Iterator[Tensor]:
        """``count`` results, each with random numbers of its own, in the order a loop has them."""
        recorder = _Recorder()
        python = _python_state()
        with recorder:
            result = self.forward()
        self.bytes = recorder.bytes
        yield result
        # Where random numbers decide in Python, the next draw may take another way.
        again = self.forward
        if recorder.replayable and _python_state() == python:
            again = recorder.finish(result)
        for _ in range(count - 1):
            yield again()


def _python_state() -> tuple[Any, ...]:
    numpy = np.random.get_state()  # noqa: NPY002 - a model's own calls use it
    return random.getstate(), numpy[1].tobytes(), numpy[2]  # type: ignore[union-attr, index]


@cache
def _written_positions(function: Any) -> tuple[tuple[int, str], ...]:
    """(position, name) of the arguments that an operator changes in place."""
    return tuple(
        (position, argument.name)
        for position, argument in enumerate(function._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )


@cache
def _rate_position(function: Any) -> tuple[int, str] | None:
    for position, argument in enumerate(function._schema.arguments):
        if argument.name in ("p", "dropout_p", "dropout"):
            return position, argument.name
    return None


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.steps: list[_Step] = []
        self.slots = WeakTensorKeyDictionary()
        self.count = 0  # of slots
        self.constants: list[Tensor] = []
        self.captured: dict[int, list[int]] = {}  # storage → constants that lie in it
        self.aliases: dict[int, list[WeakIdRef]] = {}  # storage → tensors that lie in it
        self.replayable = True
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        leaves, spec = tree_flatten((args, kwargs))
        written = self._written(func, args, kwargs)
        varies = self._draws(func, args, kwargs) or any(
            isinstance(leaf, Tensor) and leaf in self.slots for leaf in leaves
        )
        for tensor in written:
            self._keep_captured(tensor)
        if not varies:
            result = func(*args, **kwargs)
            for leaf in tree_flatten(result)[0]:
                if isinstance(leaf, Tensor):
                    self._know(leaf)
            return result
        for tensor in written:
            if tensor not in self.slots:
                self._renew(tensor)
        template = [self._refer(leaf) for leaf in leaves]
        result = func(*args, **kwargs)
        results: list[int | None] = []
        for leaf in tree_flatten(result)[0]:
            if isinstance(leaf, Tensor):
                self.bytes += leaf.numel() * leaf.element_size()
                self._know(leaf)
                results.append(self._new_slot(leaf))
            else:
                results.append(None)
                if leaf is not None:  # a number that Python may act upon
                    self.replayable = False
        if torch.Tag.dynamic_output_shape in func.tags:
            self.replayable = False  # sizes that Python has read may differ the next time
        self.steps.append(_Step(func, template, spec, results))
        return result

    def _written(self, func: Any, args: tuple[Any, ...], kwargs: Any) -> list[Tensor]:
        found = []
        for position, name in _written_positions(func):
            value = args[position] if position < len(args) else kwargs.get(name)
            found += [v for v in tree_flatten(value)[0] if isinstance(v, Tensor)]
        return found

    def _draws(self, func: Any, args: tuple[Any, ...], kwargs: Any) -> bool:
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return False
        where = _rate_position(func)
        if where is None:
            return True
        # Fused attention is tagged as random whatever its rate is.
        position, name = where
        rate = args[position] if position < len(args) else kwargs.get(name)
        return not (isinstance(rate, float | int) and rate == 0)

    def _know(self, tensor: Tensor) -> None:
        self.aliases.setdefault(_storage(tensor), []).append(WeakIdRef(tensor))

    def _new_slot(self, tensor: Tensor) -> int:
        self.slots[tensor] = index = self.count
        self.count += 1
        return index

    def _refer(self, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if leaf in self.slots:
            return _Slot(self.slots[leaf])
        index = len(self.constants)
        self.constants.append(leaf)
        self.captured.setdefault(_storage(leaf), []).append(index)
        return _Constant(index)

    def _keep_captured(self, tensor: Tensor) -> None:
        """A tensor is about to be written to: steps that have read it must find its old value."""
        for index in self.captured.pop(_storage(tensor), []):
            self.constants[index] = self.constants[index].clone()

    def _renew(self, tensor: Tensor) -> None:
        """A step writes into what was computed once: every replay begins with a copy of it.

        All tensors that lie in the same storage change with it, so all become views of the copy.
        """
        key = _storage(tensor)
        size = tensor.untyped_storage().nbytes() // tensor.element_size()
        flat = torch.as_strided(tensor, [size], [1], 0)
        self.constants.append(flat.clone())
        copy = self.count
        self.count += 1
        clone = torch.ops.aten.clone.default
        leaves, spec = tree_flatten(((_Constant(len(self.constants) - 1),), {}))
        self.steps.append(_Step(clone, leaves, spec, [copy]))
        alive = [reference() for reference in self.aliases.get(key, [])]
        lying = {id(t): t for t in (*alive, tensor) if t is not None and _storage(t) == key}
        for alias in lying.values():
            if alias in self.slots or alias.dtype != tensor.dtype:
                continue
            shape = [*alias.shape], [*alias.stride()], alias.storage_offset()
            leaves, spec = tree_flatten(((_Slot(copy), *shape), {}))
            view = torch.ops.aten.as_strided.default
            self.steps.append(_Step(view, leaves, spec, [self._new_slot(alias)]))

    def finish(self, result: Tensor) -> Callable[[], Tensor]:
        """A function that runs the steps once more and gives their result."""
        if result not in self.slots:
            return lambda: result  # no random number reaches it
        wanted = self.slots[result]
        last: dict[int, _Step] = {}
        for step in self.steps:
            for leaf in step.leaves:
                if isinstance(leaf, _Slot):
                    last[leaf.index] = step
            for made in step.results:
                if made is not None:
                    last.setdefault(made, step)
        for index, step in last.items():
            if index != wanted:
                step.finished.append(index)
        values: list[Any] = [None] * self.count

        def replay() -> Tensor:
            for step in self.steps:
                leaves = [self._value(leaf, values) for leaf in step.leaves]
                args, kwargs = tree_unflatten(leaves, step.spec)
                made = step.function(*args, **kwargs)
                if len(step.results) == 1:
                    values[step.results[0]] = made  # type: ignore[index]
                else:
                    for index, leaf in zip(step.results, tree_flatten(made)[0], strict=True):
                        if index is not None:
                            values[index] = leaf
                for index in step.finished:
                    values[index] = None
            return values[wanted]

        return replay

    def _value(self, leaf: Any, values: list[Any]) -> Any:
        kind = type(leaf)
        if kind is _Slot:
            return values[leaf.index]
        return self.constants[leaf.index] if kind is _Constant else leaf


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
