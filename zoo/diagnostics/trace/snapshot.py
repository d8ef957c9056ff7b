"""Leaving a model as it was, whatever is run on it."""

from __future__ import annotations

import ctypes
import random
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from zoo.diagnostics.trace.held import held_by, is_own_object, package_of
from zoo.diagnostics.trace.operations import written


class Snapshot:
    """All of a model that a forward could change, and the random state; ``restore`` puts it back.

    Buffers are kept by value (BatchNorm's update does not show in their version counters),
    attributes by identity, lists and dicts among them by content; parameters, and tensors that are
    held in other ways, by value only where ``protect`` is called before one is written to.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.found = held = list(held_by(model))
        # Those that are hidden in lists, objects and closures as well.
        hidden = [m for _, one in held if isinstance(one, nn.Module) for m in _parts(one)]
        self.modules = list(dict.fromkeys([*model.modules(), *hidden]))
        self.attributes = [
            {} if is_scripted(module) else dict(module.__dict__) for module in self.modules
        ]
        self.contents = [
            {
                name: value.copy() if value else None  # most are hooks, and there are none
                for name, value in attributes.items()
                if isinstance(value, list | dict | set)
            }
            for attributes in self.attributes
        ]
        self.modes = [module.training for module in self.modules]
        # One walk over the modules: parameters() and buffers() would make two more.
        self.parameters: dict[int, Tensor] = {}
        buffers: dict[int, Tensor] = {}
        for module in self.modules:
            opaque = is_scripted(module)
            own = module.parameters(False) if opaque else module._parameters.values()
            self.parameters |= {id(p): p for p in own if p is not None}
            kept = module.buffers(False) if opaque else module._buffers.values()
            buffers |= {id(b): b for b in kept if b is not None}
        self.buffers = [(buffer, buffer.detach().clone()) for buffer in buffers.values()]
        self.storages: dict[int, list[Tensor]] = {}
        self.protected: dict[int, tuple[Tensor, Tensor]] = {}
        self.held = [one for _, one in held if isinstance(one, Tensor)]
        # Those of the model's own code alone: what a logger or a loader holds may be in use.
        code = {package_of(type(module)) for module in model.modules()}
        self.objects = [
            (one, dict(one.__dict__))
            for _, one in held
            if is_own_object(one) and package_of(type(one)) in code
        ]
        self.randomness = Randomness(one for _, one in held)

    def adopt(self, generator: Any) -> None:
        """Keeps the state of a generator that the model draws from and does not hold."""
        self.randomness.adopt(generator)

    def tensors(self) -> dict[str, Tensor]:
        """Path → every tensor that the model held when this was taken."""
        return tensors_of(self.model, self.found)

    def guard(self, tensors: list[Tensor]) -> None:
        """Keeps these as parameters are kept: a forward's inputs, which it may write to."""
        for tensor in tensors:
            self.parameters[id(tensor)] = tensor

    def protect(self, tensor: Tensor) -> None:
        """Keeps a parameter's value, if this is one, or lies in the memory of one."""
        tensor = unwrapped(tensor)
        if not self.storages:
            for parameter in chain(self.parameters.values(), self.held):
                self.storages.setdefault(storage_of(parameter), []).append(parameter)
        for parameter in self.storages.get(storage_of(tensor), []):
            if id(parameter) not in self.protected:
                self.protected[id(parameter)] = (parameter, parameter.detach().clone())

    @torch.no_grad()
    def restore_buffers(self) -> None:
        """Puts back the buffers alone, which a forward may have changed or set anew."""
        for module, contents in zip(self.modules, self.contents, strict=True):
            if held := contents.get("_buffers"):
                module._buffers.update(held)
        for buffer, value in self.buffers:
            buffer.detach().copy_(value)

    @torch.no_grad()
    def restore(self) -> None:
        for module, attributes, contents, mode in zip(
            self.modules, self.attributes, self.contents, self.modes, strict=True
        ):
            if is_scripted(module):
                module.train(mode)
                continue
            module.__dict__.clear()
            module.__dict__.update(attributes)
            for name, content in contents.items():
                value: Any = attributes[name]
                if content is None:
                    if value:
                        value.clear()
                elif value != content if isinstance(value, set) else not _same(value, content):
                    value.clear()
                    value.extend(content) if isinstance(value, list) else value.update(content)
        for one, attributes in self.objects:
            one.__dict__.clear()
            one.__dict__.update(attributes)
        for tensor, value in [*self.buffers, *self.protected.values()]:
            tensor.detach().copy_(value)
        self.randomness.restore()


class Randomness:
    """All random states that a model can draw from, its own generators included.

    Args:
        held: what it holds; the generators among it count.
    """

    def __init__(self, held: Iterable[Any] = ()) -> None:
        self.random = random.getstate()
        self.numpy = np.random.get_state()  # noqa: NPY002 - the model's own calls use it
        self.torch = torch.get_rng_state()
        started = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        self.cuda = torch.cuda.get_rng_state_all() if started else []
        self.own: dict[int, tuple[Any, Any]] = {}
        self.seeded: int | None = None
        for one in held:
            self.adopt(one)

    def adopt(self, value: Any) -> None:
        """Adds a generator, seeded as the others have been; other values are ignored."""
        if isinstance(value, _GENERATORS) and id(value) not in self.own:
            self.own[id(value)] = value, _state_of(value)
            if self.seeded is not None:
                _seed(value, self.seeded)

    def now(self) -> Randomness:
        """The same generators, as they are at this moment."""
        return Randomness(generator for generator, _ in self.own.values())

    def python_state(self) -> tuple[Any, ...]:
        """Where the generators are that draw outside torch."""
        # Of a Mersenne twister the first word and the position: one of them moves with any draw.
        words = random.getstate()[1]
        own = (repr(_state_of(one)) for one, _ in self.own.values() if not _is_torch(one))
        return words[0], words[-1], *_numpy_position(), *own

    def seed(self, seed: int) -> None:
        """Seeds all of them."""
        seed_everywhere(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        self.seeded = seed
        for generator, _ in self.own.values():
            _seed(generator, seed)

    def restore(self) -> None:
        random.setstate(self.random)
        np.random.set_state(self.numpy)  # noqa: NPY002
        torch.set_rng_state(self.torch)
        if self.cuda:
            torch.cuda.set_rng_state_all(self.cuda)
        # Last what was seen first: one generator may have been seen as several objects.
        for generator, state in reversed(self.own.values()):
            if _is_torch(generator):
                generator.set_state(state)
            elif isinstance(generator, np.random.Generator):
                generator.bit_generator.state = state
            elif isinstance(generator, random.Random):
                generator.setstate(state)
            else:
                generator.set_state(state)


def _numpy_position() -> tuple[int, int]:
    """The first word and the position of numpy's global generator."""
    twister = np.random.get_bit_generator()  # type: ignore[attr-defined]
    if isinstance(twister, np.random.MT19937):
        # Read where they lie: get_state copies all 624 words in a loop, and this is asked of
        # every call that the audit records.
        address = twister.ctypes.state_address
        first = ctypes.c_uint32.from_address(address).value
        return first, ctypes.c_int.from_address(address + 4 * 624).value
    state: Any = np.random.get_state()  # noqa: NPY002 - somebody's own
    return hash(repr(state)), 0


_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)


def _is_torch(generator: Any) -> bool:
    return isinstance(generator, torch.Generator)


def _seed(generator: Any, seed: int) -> None:
    if _is_torch(generator):
        generator.manual_seed(seed)
    elif isinstance(generator, np.random.Generator):
        fresh = type(generator.bit_generator)(seed % 2**32)
        generator.bit_generator.state = fresh.state
    else:
        generator.seed(seed % 2**32)


def _state_of(generator: Any) -> Any:
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.getstate() if isinstance(generator, random.Random) else generator.get_state()


def unwrapped(tensor: Tensor) -> Tensor:
    """The tensor that a function transform (``vmap``, ``grad``) has wrapped."""
    while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        tensor = torch._C._functorch.get_unwrapped(tensor)
    return tensor


def storage_of(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def is_scripted(module: nn.Module) -> bool:
    return isinstance(module, torch.jit.ScriptModule)


def _parts(module: nn.Module) -> Iterator[nn.Module]:
    """The modules within one that ``held_by`` does not look into, and itself."""
    return module.modules() if is_scripted(module) else iter([module])


def _same(now: Any, before: Any) -> bool:
    """Whether a list or dict holds the same objects (never compares tensors by value)."""
    if len(now) != len(before):
        return False
    if isinstance(now, list):
        return all(a is b for a, b in zip(now, before, strict=True))
    return list(now) == list(before) and all(now[key] is before[key] for key in before)


class _Protector(TorchFunctionMode):
    """Keeps the value of every parameter that is about to be written to."""

    def __init__(self, snapshot: Snapshot) -> None:
        super().__init__()
        self.snapshot = snapshot

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "__get__":  # an attribute of a tensor, which is asked for more than all else
            return func(*args, **kwargs)
        for tensor in written(name, args, kwargs):
            self.snapshot.protect(tensor)
        if (generator := kwargs.get("generator")) is not None:
            self.snapshot.adopt(generator)
        return func(*args, **kwargs)


@contextmanager
def untouched(model: nn.Module) -> Iterator[Snapshot]:
    """Whatever is run inside, the model, its modes and the random state come out as they were."""
    snapshot = Snapshot(model)
    try:
        with _Protector(snapshot):
            yield snapshot
    finally:
        snapshot.restore()


def eagerly(model: nn.Module) -> Any:
    """A context in which compiled modules, and functions within them, run as they were written."""
    compiled = "torch._dynamo" in sys.modules or any(
        type(module).__name__ == "OptimizedModule"
        or getattr(module, "_compiled_call_impl", None) is not None
        for module in model.modules()
    )
    # set_stance imports the compiler, which takes seconds: only where there is something compiled.
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


def paths(model: nn.Module) -> dict[int, str]:
    """Module → its path, without torch.compile's ``_orig_mod``."""
    return {
        id(module): ".".join(part for part in name.split(".") if part != "_orig_mod")
        for name, module in model.named_modules()
    }


def tensors_of(
    model: nn.Module, held: Iterable[tuple[str, Any]] | None = None
) -> dict[str, Tensor]:
    """Path → every tensor that a model holds, registered or not.

    Args:
        model: any module.
        held: what ``held_by`` finds in it, where that is known.
    """
    named = held if held is not None else held_by(model)
    found = {path: one for path, one in named if isinstance(one, Tensor)}
    for path, module in model.named_modules():
        for name, tensor in (*module.named_parameters("", False), *module.named_buffers("", False)):
            found[f"{path}.{name}" if path else name] = tensor
    return found


def begin_training(model: nn.Module) -> None:
    """Training mode, as ``model.train()`` sets it; normalization that was frozen stays so.

    A ``train()`` of the model's own that keeps parts in evaluation mode is obeyed. Where the model
    itself is in training mode, a normalization that is not has been frozen by its owner.
    """
    frozen = [m for m in model.modules() if model.training and not m.training]
    set_mode(model, training=True)
    for module in frozen:
        if keeps_running_statistics(module):
            module.training = False


def set_mode(model: nn.Module, *, training: bool) -> None:
    """``model.train(training)``, also where an exported part of it refuses."""
    try:
        model.train(training)
    except NotImplementedError:
        for module in model.modules():
            if not is_exported(module):
                module.training = training


def keeps_running_statistics(module: nn.Module) -> bool:
    """Whether a module itself keeps a running variance: BatchNorm, InstanceNorm, or by hand.

    Buffers of other names count as well, once a normalization is called with them.
    """
    return any(
        name == "running_var" and b is not None for name, b in module.named_buffers("", False)
    )


def unseen_modules(model: nn.Module, held: Iterable[tuple[str, Any]] | None = None) -> list[str]:
    """Paths of the modules whose code cannot be followed: scripted, traced or exported.

    Of nested ones the outermost alone; those that are no submodules, but held all the same, count.

    Args:
        model: any module.
        held: what ``held_by`` finds in it, where that is known.
    """
    names, found = paths(model), list[str]()
    named = held if held is not None else held_by(model)
    hidden = [(path, one) for path, one in named if isinstance(one, nn.Module)]
    modules = [(names[id(module)], module) for module in model.modules()]
    for path, module in modules + [one for one in hidden if id(one[1]) not in names]:
        inside = any(not one or f"{path}.".startswith(f"{one}.") for one in found)
        if not inside and (is_scripted(module) or is_exported(module)):
            found.append(path)
    return found


def is_exported(module: nn.Module) -> bool:
    """Whether a module is a graph of ATen operators, whose mode was fixed when it was made."""
    return isinstance(module, torch.fx.GraphModule) and any(
        isinstance(node.target, torch._ops.OpOverload) for node in module.graph.nodes
    )


def to_model(model: nn.Module, inputs: Any, copy: bool = True) -> Any:
    """Copies of the tensors within ``inputs``, on the device of the model.

    Copies, because a forward may write into what it is given. Mappings of other kinds (a
    tokenizer's output) become dicts, so that what is in them is seen.

    Args:
        model: any module.
        inputs: tensors, alone or in lists, tuples and mappings.
        copy: whether tensors that are on the device already are copied.
    """
    place = next(chain(model.parameters(), model.buffers()), None)

    def copied(value: Any) -> Any:
        if isinstance(value, Tensor):
            moved = value.detach() if place is None else value.detach().to(place.device)
            return moved.clone() if copy and storage_of(moved) == storage_of(value) else moved
        if isinstance(value, Mapping):
            return {key: copied(item) for key, item in value.items()}
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*map(copied, value))
        if isinstance(value, list | tuple):
            return type(value)(map(copied, value))
        return value

    return copied(inputs)


def seed_everywhere(seed: int) -> None:
    """Seeds torch's generators that are in use; ``torch.manual_seed`` would wake sleeping GPUs."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)
