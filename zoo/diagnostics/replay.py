"""Run a forward many times, but what comes before its first random number only once.

A ``TorchDispatchMode`` sees the operators of one forward below all Python. Those that draw random
numbers, or read what such have made, are written down as *steps*; the others have run, and the
values that steps read of them are kept. Replaying the steps in order draws the same random numbers
as running the whole forward again, and gives the same result.

Many samples are replayed at once where that gives the same: their random numbers are drawn sample
by sample, as a loop draws them, and ``torch.func.vmap`` runs each of the other steps once for all
of them. Shapes in the code and operations across the batch mean in it what they mean in a loop.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from zoo.diagnostics.trace.snapshot import Randomness

# Of all that the steps of a chunk of samples make. A CPU is fastest where this stays in its caches.
STACK_BYTES = {"cpu": 2**23}
MOST_STACK_BYTES = 2**30  # on other devices
# Comparing with a loop costs two samples, which fewer than these would not win back.
FEWEST_STACKED = 10
LEAST_AT_ONCE = 4  # of samples this large a few at once are no faster than a loop


@dataclass(frozen=True, slots=True)
class _Slot:
    """A value that differs from sample to sample."""

    index: int


@dataclass(frozen=True, slots=True)
class _Constant:
    """A value that was computed once."""

    index: int


class _Layout(NamedTuple):
    """How a tensor lies in memory: random numbers fill it in that order."""

    size: list[int]
    stride: list[int]
    dtype: torch.dtype
    device: torch.device


@dataclass(slots=True)
class _Step:
    function: Callable[..., Any]
    args: list[Any]  # with _Slot and _Constant for tensors
    kwargs: dict[str, Any]
    results: list[int]  # slots of the tensors that it gives
    draws: bool = False  # random numbers
    layout: _Layout | None = None  # of its first tensor, if it draws; of its result, if blank
    finished: list[int] = field(default_factory=list)  # slots that no later step reads


class Recording:
    """A forward that can be drawn from again and again.

    Args:
        forward: takes nothing and gives a tensor; called under ``torch.inference_mode``, with the
            model in the mode it is to have.
        randomness: knows the generators that the forward may use; by default the global ones.
        stacked: whether many samples may be replayed at once: True and False where it is known,
            None to try it on two.
    """

    def __init__(
        self,
        forward: Callable[[], Tensor],
        randomness: Randomness | None = None,
        stacked: bool | None = None,
    ) -> None:
        self.forward = forward
        self.randomness = randomness or Randomness([])
        self.stacked = stacked
        self.bytes = 0  # of all activations of the forward, more than live at one time

    def draws(self, count: int) -> Iterator[Tensor]:
        """``count`` results, each with random numbers of its own, in the order a loop has them."""
        few = count < FEWEST_STACKED
        recorder = _Recorder(apart=not few and self.stacked is not False)
        before = None if few or self.stacked is not None else self.randomness.now()
        python = self.randomness.python_state()
        with recorder:
            result = self.forward()
        self.bytes = recorder.bytes
        yield result
        # Where random numbers decide in Python, the next draw may take another way.
        if not recorder.replayable or self.randomness.python_state() != python:
            for _ in range(count - 1):
                yield self.forward()
            return
        replay = _Replay(recorder, result)
        done = 1
        at_once = replay.at_once(count)
        if at_once > 1 and before is not None:
            second = replay.one()
            yield second
            done = 2
            self.stacked = self._stacks(replay, [result, second], before)
        if self.stacked and at_once > 1:
            while done < count:
                some = replay.many(min(at_once, count - done))
                yield from some.unbind()
                done += len(some)
        for _ in range(count - done):
            yield replay.one()

    def _stacks(self, replay: _Replay, loop: list[Tensor], before: Randomness) -> bool:
        """Whether samples at once are those of a loop, by random numbers drawn over again."""
        after = self.randomness.now()
        before.restore()
        try:
            found = replay.many(len(loop))
        except (RuntimeError, ValueError):  # vmap cannot run it
            found = None
        after.restore()
        if found is None:
            return False
        return agree(found, torch.stack(loop))


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


_aten = torch.ops.aten
_BLANK = frozenset({_aten.empty_like.default, _aten.new_empty.default, _aten.empty.memory_format})
# A mask and what it is applied to, in one operator.
_DROPOUTS = frozenset(
    {
        _aten.dropout.default,
        _aten.dropout_.default,
        _aten.feature_dropout.default,
        _aten.feature_dropout_.default,
        _aten.scaled_dot_product_attention.default,
        _aten._scaled_dot_product_attention_math.default,
    }
)
# They draw, and take nothing of their first argument but its form.
_DRAW_LIKE = frozenset(
    {
        _aten.rand_like.default,
        _aten.randn_like.default,
        _aten.randint_like.default,
        _aten.randint_like.low_dtype,
        _aten.bernoulli.p,
    }
)


def agree(found: Tensor, expected: Tensor) -> bool:
    """Whether two outputs differ by no more than another order of summing explains."""
    exact = expected.dtype in (torch.float32, torch.float64)
    largest = float(expected.nan_to_num(0, 0, 0).abs().max()) if expected.numel() else 0.0
    near = (1e-5 if exact else 1e-2) * largest
    return torch.allclose(found, expected, rtol=0, atol=near, equal_nan=True)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down the operators of a forward.

    Args:
        apart: whether dropout and attention are taken apart, so that a mask is one step and what it
            is applied to another. Whole they are quicker, one sample after another.
    """

    def __init__(self, apart: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.apart = apart
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
        self.step_bytes = 0  # of what the steps make
        self.depth = 0  # of operators that are taken apart
        # What is made within such an operator: nobody in Python holds it, and it must be known
        # again when it comes back.
        self.held: list[Tensor] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        draws = self._draws(func, args, kwargs)
        if draws and self.apart and func in _DROPOUTS:
            self.depth += 1
            with self:
                whole = func.decompose(*args, **kwargs)
            self.depth -= 1
            if not self.depth:
                self.held.clear()
            if whole is not NotImplemented:
                return whole
        written = self._written(func, args, kwargs)
        varies = draws or (
            self.count > 0 and any(self._varies(tensor) for tensor in _tensors((args, kwargs)))
        )
        for tensor in written:
            self._keep_captured(tensor)
        if not varies:
            result = func(*args, **kwargs)
            for tensor in _tensors(result):
                self.bytes += tensor.numel() * tensor.element_size()
            if func in _BLANK:
                blank = _Step(func, self._refer(list(args)), self._refer(kwargs), [])
                blank.layout = _layout(result)
                self.blank[result] = blank
                self._hold(result)
            return result
        for tensor in written:
            if not self._varies(tensor):
                self._renew(tensor)
        step = _Step(func, self._refer(list(args)), self._refer(kwargs), [], draws)
        if draws and args and isinstance(args[0], Tensor):
            step.layout = _layout(args[0])
        result = func(*args, **kwargs)
        made = _tensors(result)
        if func in _BLANK:
            step.layout = _layout(result)
        for tensor in made:
            self.step_bytes += tensor.numel() * tensor.element_size()
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
        self._hold(tensor)
        return index

    def _hold(self, tensor: Tensor) -> None:
        if self.depth:
            self.held.append(tensor)

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


class _Replay:
    """The steps of a recording, to be run again.

    Args:
        recorder: of a forward that can be replayed.
        result: what that forward gave.
    """

    def __init__(self, recorder: _Recorder, result: Tensor) -> None:
        self.steps, self.constants = recorder.steps, recorder.constants
        self.count, self.bytes = recorder.count, recorder.step_bytes
        self.result = result
        # None where no random number reaches it.
        self.wanted: int | None = recorder.slots.get(result)  # type: ignore[no-untyped-call]
        last: dict[int, _Step] = {}
        for step in self.steps:
            for slot in _slots((step.args, step.kwargs)):
                last[slot] = step
            for slot in step.results:
                last.setdefault(slot, step)
        for index, step in last.items():
            if index != self.wanted:
                step.finished.append(index)
        self.plan: _Plan | None = None

    def one(self) -> Tensor:
        """One more sample."""
        if self.wanted is None:
            return self.result
        values: list[Any] = [None] * self.count
        return self._run(self.steps, values, self.constants)

    def at_once(self, count: int) -> int:
        """How many of ``count`` samples are best replayed at once."""
        if self.wanted is None or count < FEWEST_STACKED:
            return 1
        most = STACK_BYTES.get(self.result.device.type, MOST_STACK_BYTES)
        found = min(count, most // max(1, self.bytes))
        if found < LEAST_AT_ONCE:
            return 1
        self.plan = self.plan or _Plan.of(self.steps, self.count)
        return found if self.plan is not None else 1

    def many(self, count: int) -> Tensor:
        """Samples (count, …) at once, with the random numbers that as many of ``one`` would draw.

        Raises:
            RuntimeError, ValueError: ``vmap`` cannot run a step.
        """
        plan = self.plan
        assert plan is not None
        drawn = plan.draw(count, self.constants)
        # Memory that steps write to is every sample's own.
        own = {i: self.constants[i].expand(count, *self.constants[i].shape) for i in plan.renewed}
        empty = [
            torch.empty((count, *layout.size), dtype=layout.dtype, device=layout.device)
            for _, layout in plan.blank
        ]

        def sample(drawn: dict[int, Tensor], own: dict[int, Tensor], empty: list[Tensor]) -> Tensor:
            values: list[Any] = [None] * plan.count
            for slot, tensor in drawn.items():
                values[slot] = tensor
            for slot, source in plan.same.items():
                values[slot] = drawn[source]
            for (slot, _), tensor in zip(plan.blank, empty, strict=True):
                values[slot] = tensor
            constants = [own.get(i, tensor) for i, tensor in enumerate(self.constants)]
            return self._run(plan.steps, values, constants)

        # Function modes have nothing to see here: the steps are operators, and write to no model.
        with warnings.catch_warnings(), torch._C.DisableTorchFunction():
            warnings.simplefilter("ignore")  # where vmap runs an operator sample by sample
            found: Tensor = torch.func.vmap(sample)(drawn, own, empty)
        return found

    def _run(self, steps: list[_Step], values: list[Any], constants: list[Tensor]) -> Tensor:
        def resolve(value: Any) -> Any:
            kind = type(value)
            if kind is _Slot:
                return values[value.index]
            if kind is _Constant:
                return constants[value.index]
            return [resolve(item) for item in value] if kind is list else value

        for step in steps:
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
        assert self.wanted is not None
        found: Tensor = values[self.wanted]
        return found


@dataclass
class _Plan:
    """Steps in two parts: those that draw, sample by sample, and the others, for all at once."""

    draws: list[_Step]
    steps: list[_Step]
    count: int  # of slots
    same: dict[int, int]  # slot of a tensor before it is filled with random numbers → and after
    blank: list[tuple[int, _Layout]]  # slots of tensors that steps fill, and not with random ones
    renewed: list[int]  # constants that every sample has its own copy of

    @classmethod
    def of(cls, steps: list[_Step], count: int) -> _Plan | None:
        """None where a step draws by the values that earlier draws have made."""
        plan = cls([], [], count, {}, [], [])
        blank: dict[int, _Layout] = {}
        for step in steps:
            if step.function in _BLANK and step.layout:
                blank[step.results[0]] = step.layout
            elif step.draws:
                if not plan._add_draw(step, blank):
                    return None
            else:
                function = step.function
                if function is _aten.clone.default and isinstance(step.args[0], _Constant):
                    plan.renewed.append(step.args[0].index)
                if function is _aten.view.default:  # samples may lie otherwise than one does
                    step = replace(step, function=_aten.reshape.default)
                plan.steps.append(step)
        plan.blank = [*blank.items()]
        return plan

    def _add_draw(self, step: _Step, blank: dict[int, _Layout]) -> bool:
        read = set(_slots((step.args, step.kwargs)))
        first = step.args[0].index if step.args and isinstance(step.args[0], _Slot) else None
        if not read:
            self.draws.append(replace(step, layout=None))
        elif read != {first} or first is None:
            return False
        elif first in blank and _written_positions(step.function):
            self.same[first] = step.results[0]
            self.draws.append(replace(step, layout=blank.pop(first)))
        elif step.function in _DRAW_LIKE:
            self.draws.append(step)
        elif step.function is _aten.native_dropout.default:
            # What it does to ones is what it multiplies others by.
            scale = self.count
            self.count += 1
            self.draws.append(replace(step, results=[scale, step.results[1]]))
            multiplied = _Step(
                _aten.mul.Tensor, [step.args[0], _Slot(scale)], {}, [step.results[0]]
            )
            multiplied.finished = [scale, *step.finished]
            self.steps.append(multiplied)
        else:
            return False
        return True

    def draw(self, count: int, constants: list[Tensor]) -> dict[int, Tensor]:
        """Random numbers of ``count`` samples by slot, in the order in which a loop draws them."""
        filled: dict[int, tuple[Tensor, ...]] = {}
        found: dict[int, Any] = {}
        like: dict[int, Tensor] = {}
        for number, step in enumerate(self.draws):
            if step.layout is None:
                continue
            size, stride, dtype, device = step.layout
            if step.function in _DRAW_LIKE or step.function is _aten.native_dropout.default:
                like[number] = torch.empty_strided(size, stride, dtype=dtype, device=device)
                like[number].fill_(1)
            else:
                extent = 1 + sum((n - 1) * jump for n, jump in zip(size, stride, strict=True))
                whole = torch.empty_strided(
                    [count, *size], [max(0, extent), *stride], dtype=dtype, device=device
                )
                filled[number] = whole.unbind()
                found[step.results[0]] = whole

        def resolve(value: Any) -> Any:
            if isinstance(value, _Constant):
                return constants[value.index]
            return [resolve(item) for item in value] if isinstance(value, list) else value

        calls = []
        for number, step in enumerate(self.draws):
            args = [resolve(value) for value in step.args]
            kwargs = {name: resolve(value) for name, value in step.kwargs.items()}
            if number in like:
                args[0] = like[number]
            calls.append((step, args, kwargs, filled.get(number)))
        with torch._C.DisableTorchFunction():
            for sample in range(count):
                for step, args, kwargs, into in calls:
                    if into is not None:
                        step.function(into[sample], *args[1:], **kwargs)
                        continue
                    made = _tensors(step.function(*args, **kwargs))
                    for slot, tensor in zip(step.results, made, strict=True):
                        found.setdefault(slot, []).append(tensor)
        return {s: torch.stack(v) if isinstance(v, list) else v for s, v in found.items()}


def _layout(tensor: Tensor) -> _Layout:
    return _Layout([*tensor.shape], [*tensor.stride()], tensor.dtype, tensor.device)


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
