"""What a segmenter's card states in addition to its metrics."""

from __future__ import annotations

from typing import Any

from zoo.evaluation.audit import audit_counts


def measure(task: Any, data: Any, stated: dict[str, Any]) -> dict[str, Any]:
    """Adds the audit's counts to what is stated of trained weights."""
    return {**stated, "proof": {"audit": audit_counts(task, data)}}
