"""What the audit says of a task as its recipe trains it."""

from __future__ import annotations

from typing import Any

from zoo.diagnostics.audit import audit


def audit_counts(task: Any, data: Any) -> dict[str, int]:
    """Counts the audit's findings of each severity.

    Args:
        task: with ``network``, ``example_inputs`` and ``make_optimizer``.
        data: its data module.
    """
    report = audit(
        task.network.eval(),
        *task.example_inputs(data),
        batch_size=data.used.batch_size,
        optimizer=task.make_optimizer(),
    )
    return {
        severity: len([f for f in report.findings if f.severity == severity])
        for severity in ("error", "warning", "info")
    }
