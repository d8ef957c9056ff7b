"""Running any model on an example or on a loader's batch, and finding its logits."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zoo.core.text import first_line
from zoo.diagnostics.trace.operations import tensors_in
from zoo.diagnostics.trace.snapshot import to_model
from zoo.errors import UserError

Forward = Callable[[Any], Any]
_TARGETS = ("labels", "label")


def logits_in(output: Any) -> Tensor:
    """Finds a model's logits: its output, its ``.logits`` or ``["logits"]``, or its first tensor.

    Raises:
        UserError: there is no tensor in it.
    """
    named = output.get("logits") if isinstance(output, Mapping) else None
    found = [named, getattr(output, "logits", None), *tensors_in(output)]
    tensor = next((one for one in found if isinstance(one, Tensor)), None)
    if tensor is None:
        raise UserError(f"the model gives {type(output).__name__}, in which there are no logits")
    return tensor


def arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Splits an example into arguments of a forward: a tuple is positional, a mapping keywords.

    Args:
        inputs: a tensor, a tuple, or a mapping (a tokenizer's ``BatchEncoding`` is one).

    Returns:
        Positional and keyword arguments.
    """
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs) if isinstance(inputs, tuple) else (inputs,)), {}


def call(model: nn.Module, inputs: Any, forward: Forward | None = None) -> Any:
    """Runs a model on an example.

    Args:
        model: any module.
        inputs: a tensor, a tuple (positional), a mapping (keywords), or what ``forward`` takes.
        forward: runs the model where its inputs are of another form.

    Raises:
        UserError: the model does not take such arguments.
    """
    if forward is not None:
        return forward(inputs)
    args, kwargs = arguments(inputs)
    try:
        return model(*args, **kwargs)
    except TypeError:
        _check(model, args, kwargs)
        raise
    except RuntimeError as error:
        if any(one.dtype == torch.uint8 for one in tensors_in((args, kwargs))):
            raise UserError(
                "the model does not take bytes (uint8): normalize the images first, "
                f"data.normalize(images) ({first_line(error)})"
            ) from error
        raise


def inputs_of(model: nn.Module, batch: Any) -> Any:
    """Finds the inputs in a loader's batch, without the targets.

    Args:
        model: whose forward says how many positional arguments it requires.
        batch: a tensor or a mapping of inputs; or a tuple or list that begins with them. Where the
            forward requires several, it begins with as many.
    """
    if isinstance(batch, Mapping):
        taken = _parameters(model)
        open_ended = taken is None or any(p.kind is p.VAR_KEYWORD for p in taken.values())
        return {
            name: value
            for name, value in batch.items()
            if name not in _TARGETS or open_ended or name in (taken or {})
        }
    if not isinstance(batch, list | tuple) or hasattr(batch, "_fields"):
        return batch
    positional = [
        p
        for p in (_parameters(model) or {}).values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if not batch:
        raise UserError("the loader gave an empty batch")
    first = batch[0]
    if len(positional) > 1 and isinstance(first, list):  # a tuple, as a DataLoader collates it
        return tuple(first)
    if 1 < len(positional) <= len(batch) and not isinstance(first, tuple | Mapping):
        return tuple(batch[: len(positional)])
    return first


def forward_batch(model: nn.Module, batch: Any, forward: Forward | None = None) -> Any:
    """Runs a model on a loader's batch; ``inputs_of`` says what of it are inputs.

    Args:
        model: any module.
        batch: inputs, or a tuple or list that begins with them.
        forward: runs the model on a whole batch, where batches are of another form.
    """
    if forward is not None:
        return forward(to_model(model, batch))
    return call(model, to_model(model, inputs_of(model, batch)))


def _parameters(model: nn.Module) -> Mapping[str, inspect.Parameter] | None:
    try:
        return inspect.signature(model.forward).parameters
    except (TypeError, ValueError):  # scripted
        return None


def _check(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raises where the forward's signature does not take the arguments."""
    try:
        signature = inspect.signature(model.forward)
    except (TypeError, ValueError):  # scripted
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise UserError(
            f"{type(model).__name__}.forward{signature}: {error}. Give a tensor, a tuple "
            "(positional), a mapping (keywords), or forward=lambda inputs: model(…)"
        ) from None
