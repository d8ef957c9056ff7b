"""What a card states of trained weights, measured anew from the weights."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer

from zoo import registry
from zoo.errors import UserError

STATED = ("metrics", "samples", "judged", "text", "proof", "calibration")


def measure(task: Any, data: Any) -> dict[str, Any]:
    """Measures what a card states of trained weights, in the precision they are loaded in.

    Args:
        task: a trained task in evaluation mode.
        data: the data module that it was trained on.

    Returns:
        The keys of ``STATED`` that its kind of task has, and ``headline``.

    Raises:
        UserError: the data have no test images, which this task is measured on.
    """
    samples = data.sizes()
    if not data.has_test and task.headline.startswith("test/"):
        raise UserError(f"{data.name} has no test images: there is nothing to state")
    trainer = Trainer(logger=False, enable_progress_bar=False, enable_model_summary=False)
    metrics: dict[str, float] = {}
    measures = [trainer.validate]
    if data.has_test and task.tests:
        measures.append(trainer.test)
    for measured in measures:
        for result in measured(task, datamodule=data, verbose=False):
            metrics.update(result)
    stated: dict[str, Any] = {
        "headline": task.headline,
        "metrics": {name: round(value, 6) for name, value in metrics.items()},
        "samples": samples,
    }
    entry = registry.find(registry.TASKS, type(task).__name__, "task")
    complete: dict[str, Any] = registry.load(entry.measure)(task, data, stated)
    return complete


def figures(value: Any, name: str = "") -> dict[str, Any]:
    """Lists every number and text in a JSON value by its path, ``proof.audit.error``."""
    if isinstance(value, dict):
        pairs: Any = value.items()
    elif isinstance(value, list):
        pairs = enumerate(value)
    else:
        return {name: value}
    found: dict[str, Any] = {}
    for key, item in pairs:
        found |= figures(item, f"{name}.{key}" if name else str(key))
    return found


def differ(stated: Any, measured: Any) -> bool:
    """Returns whether two numbers differ by more than rounding and another processor explain."""
    if isinstance(stated, bool) or not isinstance(stated, int | float):
        return bool(stated != measured)
    if not isinstance(measured, int | float):
        return True
    return abs(measured - stated) > 5e-4 + 2e-3 * abs(stated)
