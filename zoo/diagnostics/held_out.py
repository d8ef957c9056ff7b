"""Logits and labels of a loader's batches, for what is fitted on held-out data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from zoo.core.text import counted
from zoo.diagnostics.forward import Forward, forward_batch
from zoo.diagnostics.predictions import Predictions
from zoo.diagnostics.trace.snapshot import eagerly, set_mode, untouched
from zoo.errors import UserError


def labels_in(batch: Any, what: str) -> Tensor:
    """Finds a batch's labels: the last of a tuple or list, or ``labels`` or ``label`` of a mapping.

    Args:
        batch: of a loader.
        what: begins the message where there are none.
    """
    if isinstance(batch, Mapping):
        named = batch.get("labels", batch.get("label"))
        if isinstance(named, Tensor):
            return named
    elif isinstance(batch, list | tuple) and len(batch) > 1 and isinstance(batch[-1], Tensor):
        return batch[-1]
    raise UserError(f"{what} needs labels: (inputs, labels), or a mapping with 'labels'")


def labeled_logits(
    tool: str, model: nn.Module, loader: Iterable[Any], forward: Forward | None = None
) -> tuple[Tensor, Tensor]:
    """Runs a classifier in evaluation mode over a loader; the model stays untouched.

    Args:
        tool: begins each message.
        model: any classifier that gives logits (B, K).
        loader: batches of (inputs, labels), or mappings with ``labels``.
        forward: runs the model on a batch, where the batches are of another form.

    Returns:
        Logits (N, K), float64, and labels (N,), int64, on the CPU.

    Raises:
        UserError: there is no batch, no label or no logit, one is not finite, or a label is none
            of the K classes.
    """
    predictions = Predictions("multiclass", None)
    found, truth = [], []
    with untouched(model), eagerly(model), torch.no_grad():
        set_mode(model, training=False)
        for batch in loader:
            logits = predictions.of(partial(forward_batch, model, batch, forward))
            found.append(logits.double().cpu())
            truth.append(labels_in(batch, f"{tool}: the loader").cpu())
    if not found:
        raise UserError(f"{tool}: the loader gave no batch")
    if predictions.outputs != "logits":
        raise UserError(
            f"{tool}: {type(model).__name__} ends in a softmax: give the model without it, or "
            "forward=lambda batch: its logits"
        )
    logits, labels = torch.cat(found), torch.cat(truth)
    if labels.shape != logits.shape[:1] or labels.is_floating_point():
        raise UserError(
            f"{tool}: labels are {list(labels.shape)} of {labels.dtype} for logits "
            f"{list(logits.shape)}: give one class, a whole number, for each row"
        )
    labels = labels.long()
    if not logits.isfinite().all():
        raise UserError(f"{tool}: a logit is not finite (NaN or infinity in the data or weights)")
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise UserError(
            f"{tool}: labels go from {int(labels.min())} to {int(labels.max())}, and the model "
            f"gives {counted(logits.shape[1], 'class', 'classes')}: leave out images of no class"
        )
    return logits, labels
