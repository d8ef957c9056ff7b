"""Running any model on a loader's batch, and finding its logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from zoo.diagnostics.trace.operations import tensors_in
from zoo.diagnostics.trace.snapshot import to_model
from zoo.errors import UserError


def logits_in(output: Any) -> Tensor:
    """A model's logits: its output, ``.logits`` or ``["logits"]`` of it, or its first tensor.

    Raises:
        UserError: there is no tensor in it.
    """
    named = output.get("logits") if isinstance(output, Mapping) else None
    found = [named, getattr(output, "logits", None), *tensors_in(output)]
    tensor = next((one for one in found if isinstance(one, Tensor)), None)
    if tensor is None:
        raise UserError(f"the model gives {type(output).__name__}, in which there are no logits")
    return tensor


def forward_batch(model: nn.Module, batch: Any) -> Any:
    """Runs a model on a loader's batch: a tensor, (input, …), or a dict of keyword arguments."""
    if isinstance(batch, Mapping):
        return model(**to_model(model, dict(batch)))
    return model(to_model(model, batch[0] if isinstance(batch, list | tuple) else batch))
