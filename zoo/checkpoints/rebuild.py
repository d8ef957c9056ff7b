"""Builds tasks and networks from a file's description, which is checked first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from zoo import networks, registry
from zoo.core.checkpoint_config import Part
from zoo.core.schema import check_arguments
from zoo.core.text import first_line, nearest, shown
from zoo.errors import UserError
from zoo.tasks.base import Task

LARGEST = 2**20  # of a whole number among a network's arguments: a longer loop would never end


def rebuild(task: Part, network: Part, state: Mapping[str, Tensor], source: str) -> Task:
    """Builds the task and the network that a file describes, with fresh weights.

    Args:
        task: the task's name and arguments.
        network: the network's.
        state: the weights that are to be loaded: a network much larger than they are is refused
            before it takes the memory.
        source: the file, for messages.

    Raises:
        UserError: a name or an argument that does not exist, or a value that is refused.
    """
    cls: type[Task] = task_class(task["name"], source)
    check_arguments(cls, task["args"], f"{source}: task")
    return _built(cls, f"{source}: task", rebuild_network(network, state, source), **task["args"])


def rebuild_network(description: Part, state: Mapping[str, Tensor], source: str) -> nn.Module:
    """Builds a network that a file describes; arguments as ``rebuild`` has them."""
    name, args = description["name"], description["args"]
    if name not in networks.REGISTRY:
        raise UserError(
            f"{source}: no network named {shown(name)}{nearest(name, networks.REGISTRY)}: choose "
            f"one of {', '.join(networks.REGISTRY)}"
        )
    check_arguments(networks.REGISTRY[name], args, f"{source}: network")
    if (largest := max(_whole_numbers(args), default=0)) > LARGEST:
        raise UserError(f"{source}: network: {largest} among its arguments is more than {LARGEST}")
    with _no_larger_than(state, source):
        network: nn.Module = _built(networks.build, f"{source}: network", description)
    return network


def task_class(name: Any, source: str) -> type[Task]:
    """Finds the class of a task that a file names.

    Raises:
        UserError: there is none of this name.
    """
    cls: type[Task] = registry.load(registry.find(registry.TASKS, name, "task", source).task)
    return cls


def load_state(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Loads weights into a module, all of them or none.

    Raises:
        UserError: they are another module's.
    """
    expected = module.state_dict()
    for name in (*expected, *state):
        if name not in state or name not in expected:
            where = "is missing" if name not in state else "is not the network's"
            raise UserError(f"{source}: weights do not fit the network: {shown(name)} {where}")
        ours, theirs = expected[name], state[name]
        if ours.shape != theirs.shape or ours.is_floating_point() != theirs.is_floating_point():
            raise UserError(
                f"{source}: weights do not fit the network: {name} is {form(theirs)} there and "
                f"{form(ours)} in the network"
            )
    _built(module.load_state_dict, f"{source}: weights", state)


def form(tensor: Tensor) -> str:
    """Formats a tensor's type and shape, for messages."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {shown(list(tensor.shape))}"


def _built(make: Any, source: str, *args: Any, **kwargs: Any) -> Any:
    try:
        return make(*args, **kwargs)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    except Exception as error:  # of values that no signature can exclude, torch has many kinds
        raise UserError(f"{source} cannot be built: {first_line(error)}") from error


def _whole_numbers(value: Any) -> Iterator[int]:
    if isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _whole_numbers(item)
    elif isinstance(value, int):
        yield abs(value)


@contextmanager
def _no_larger_than(state: Mapping[str, Tensor], source: str) -> Iterator[None]:
    """Stops a network that outgrows its weights, before what is too large is filled."""
    budget = 2 * sum(tensor.numel() for tensor in state.values()) + 2**20
    tensors = 8 * len(state) + 1000  # spectral norm registers a weight twice

    def count(module: nn.Module, name: str, tensor: Tensor | None) -> None:
        nonlocal budget, tensors
        budget -= tensor.numel() if tensor is not None else 0
        tensors -= 1
        if min(budget, tensors) < 0:
            raise UserError("its arguments make a network much larger than its weights")

    hooks = (
        torch_module.register_module_parameter_registration_hook(count),
        torch_module.register_module_buffer_registration_hook(count),
        torch_module.register_module_module_registration_hook(
            lambda module, name, child: count(module, name, None)
        ),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
