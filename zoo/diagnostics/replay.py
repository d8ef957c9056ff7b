"""Run a forward many times, but what comes before its first random number only once.

A ``TorchDispatchMode`` sees the operators of one forward below all Python. Those that draw random
numbers, or read what such have made, are written down as *steps*; the others have run, and the
values that steps read of them are kept. Replaying the steps in order draws the same random numbers
as running the whole forward again, and gives the same result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from zoo.diagnostics.trace.snapshot import Randomness


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
    args: list[Any]  # with _Slot and _Constant for tensors
    kwargs: dict[str, Any]
    results: list[int]  # slots of the tensors that it gives
    finished: list[int] = field(default_factory=list)  # slots that no later step reads


class Recording:
    """A forward that can be drawn from again and again.

    Args:
        forward: takes nothing and gives a tensor; called under ``torch.inference_mode``, with the
            model in the mode it is to have.
        python_state: tells where the generators outside torch are that the forward may use; by
            default those of Python and numpy.
    """

    def __init__(
        self,
        forward: Callable[[], Tensor],
        python_state: Callable[[], tuple[Any, ...]] | None = None,
    ) -> None:
        self.forward = forward
        self.python_state = python_state or Randomness([]).python_state
        self.bytes = 0  # of all activations of the forward, more than live at one time

    def draws(self, count: int) -> Iterator[Tensor]:
        """``count`` results, each with random numbers of its own, in the order a loop has them."""
        recorder = _Recorder()
        python = self.python_state()
        with recorder:
            result = self.forward()
        self.bytes = recorder.bytes
        yield result
        # Where random numbers decide in Python, the next draw may take another way.
        again = self.forward
        if recorder.replayable and self.python_state() == python:
            again = recorder.finish(result)
        for _ in range(count - 1):
            yield again()


@cache
def _written_positions(function: Any) -> tuple[tuple[int, str], ...]:
    """(position, name) of the arguments that an operator changes in place."""
    return tuple(
        (position, argument.name)
        for position, argument in enumerate(function._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )


@cache
def _may_draw(function: Any) -> bool:
    return torch.Tag.nondeterministic_seeded in function.tags


@cache
def _rate_position(function: Any) -> tuple[int, str, Any] | None:
    for position, argument in enumerate(function._schema.arguments):
        if argument.name in ("p", "dropout_p", "dropout"):
            return position, argument.name, argument.default_value
    return None


_BLANK = frozenset(
    {
        torch.ops.aten.empty_like.default,
        torch.ops.aten.new_empty.default,
        torch.ops.aten.empty.memory_format,
    }
)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps: list[_Step] = []
        self.slots = WeakTensorKeyDictionary()
        self.count = 0  # of slots
        self.constants: list[Tensor] = []
        self.captured: dict[int, list[int]] = {}  # storage → constants that lie in it
        # storage computed once that a step has written to → (a tensor in it, slot of the copy)
        self.renewed: dict[int, tuple[Tensor, int]] = {}
        # New tensors without content, as dropout makes them for its mask → how they were made.
        self.blank: MutableMapping[Tensor, _Step] = WeakTensorKeyDictionary()
        self.replayable = True
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        written = self._written(func, args, kwargs)
        varies = self._draws(func, args, kwargs) or (
            self.count > 0 and any(self._varies(tensor) for tensor in _tensors((args, kwargs)))
        )
        for tensor in written:
            self._keep_captured(tensor)
        if not varies:
            result = func(*args, **kwargs)
            for tensor in _tensors(result):
                self.bytes += tensor.numel() * tensor.element_size()
            if func in _BLANK:
                self.blank[result] = _Step(func, self._refer(list(args)), self._refer(kwargs), [])
            return result
        for tensor in written:
            if not self._varies(tensor):
                self._renew(tensor)
        step = _Step(func, self._refer(list(args)), self._refer(kwargs), [])
        result = func(*args, **kwargs)
        made = _tensors(result)
        for tensor in made:
            self.bytes += tensor.numel() * tensor.element_size()
            step.results.append(self._new_slot(tensor))
        if not made or torch.Tag.dynamic_output_shape in func.tags:
            self.replayable = False  # a number, or a size, that Python may act upon
        self.steps.append(step)
        return result

    def _written(self, func: Any, args: tuple[Any, ...], kwargs: Any) -> list[Tensor]:
        found = []
        for position, name in _written_positions(func):
            found += _tensors(args[position] if position < len(args) else kwargs.get(name))
        return found

    def _draws(self, func: Any, args: tuple[Any, ...], kwargs: Any) -> bool:
        if not _may_draw(func):
            return False
        where = _rate_position(func)
        if where is None:
            return True
        # Fused attention is tagged as random whatever its rate is.
        position, name, default = where
        rate = args[position] if position < len(args) else kwargs.get(name, default)
        return not (isinstance(rate, float | int) and rate == 0)

    def _varies(self, tensor: Tensor) -> bool:
        """Whether a tensor differs from sample to sample, by itself or by what it shares."""
        if tensor in self.slots:
            return True
        if not self.renewed or _storage(tensor) not in self.renewed:
            return False
        # It lies where a step has written: in a replay it is a view of the copy.
        _, copy = self.renewed[_storage(tensor)]
        shape = [*tensor.shape], [*tensor.stride()], tensor.storage_offset()
        view = torch.ops.aten.as_strided.default
        self.steps.append(_Step(view, [_Slot(copy), *shape], {}, [self._new_slot(tensor)]))
        return True

    def _new_slot(self, tensor: Tensor) -> int:
        self.slots[tensor] = index = self.count
        self.count += 1
        return index

    def _refer(self, value: Any) -> Any:
        """Arguments with references in place of tensors."""
        if isinstance(value, list | tuple):
            return [self._refer(item) for item in value] if _tensors(value) else value
        if isinstance(value, dict):
            return {name: self._refer(item) for name, item in value.items()}
        if not isinstance(value, Tensor):
            return value
        if value in self.slots:
            return _Slot(self.slots[value])
        index = len(self.constants)
        self.constants.append(value)
        self.captured.setdefault(_storage(value), []).append(index)
        return _Constant(index)

    def _keep_captured(self, tensor: Tensor) -> None:
        """A tensor is about to be written to: steps that have read it must find its old value."""
        for index in self.captured.pop(_storage(tensor), []):
            self.constants[index] = self.constants[index].clone()

    def _renew(self, tensor: Tensor) -> None:
        """A step writes into what was computed once: every replay begins with a copy of it."""
        if made := self.blank.get(tensor):  # there is nothing in it to copy
            made.results.append(self._new_slot(tensor))
            self.steps.append(made)
            return
        size = tensor.untyped_storage().nbytes() // tensor.element_size()
        self.constants.append(torch.as_strided(tensor, [size], [1], 0).clone())
        copy = self.count
        self.count += 1
        constant = _Constant(len(self.constants) - 1)
        self.steps.append(_Step(torch.ops.aten.clone.default, [constant], {}, [copy]))
        self.renewed[_storage(tensor)] = tensor, copy
        self._varies(tensor)

    def finish(self, result: Tensor) -> Callable[[], Tensor]:
        """A function that runs the steps once more and gives their result."""
        if result not in self.slots:
            return lambda: result  # no random number reaches it
        wanted = self.slots[result]
        last: dict[int, _Step] = {}
        for step in self.steps:
            for slot in _slots((step.args, step.kwargs)):
                last[slot] = step
            for slot in step.results:
                last.setdefault(slot, step)
        for index, step in last.items():
            if index != wanted:
                step.finished.append(index)
        values: list[Any] = [None] * self.count

        def resolve(value: Any) -> Any:
            kind = type(value)
            if kind is _Slot:
                return values[value.index]
            if kind is _Constant:
                return self.constants[value.index]
            return [resolve(item) for item in value] if kind is list else value

        def replay() -> Tensor:
            for step in self.steps:
                args = [resolve(value) for value in step.args]
                kwargs = {name: resolve(value) for name, value in step.kwargs.items()}
                made = step.function(*args, **kwargs)
                if len(step.results) == 1 and isinstance(made, Tensor):
                    values[step.results[0]] = made
                else:
                    for slot, tensor in zip(step.results, _tensors(made), strict=True):
                        values[slot] = tensor
                for slot in step.finished:
                    values[slot] = None
            return values[wanted]

        return replay


def _tensors(value: Any) -> list[Tensor]:
    """The tensors within an operator's arguments or results."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in _tensors(item)]
    return []


def _slots(value: Any) -> Iterator[int]:
    if isinstance(value, _Slot):
        yield value.index
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _slots(item)
    elif isinstance(value, dict):
        yield from _slots(list(value.values()))


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
