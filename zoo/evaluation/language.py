"""What a language model's card states in addition to its losses."""

from __future__ import annotations

from typing import Any

from zoo.evaluation.audit import audit_counts

PROMPT, LENGTH = "ROMEO:", 400  # of the text in the card


def measure(task: Any, data: Any, stated: dict[str, Any]) -> dict[str, Any]:
    """Adds a sample of text and the audit's counts to what is stated of trained weights."""
    vocabulary = task.data_info["vocabulary"]
    prompt = PROMPT if set(PROMPT) <= set(vocabulary) else vocabulary[0]
    generated = task.generate(prompt, LENGTH, seed=0)
    text = {"prompt": prompt, "made": generated}
    return {**stated, "text": text, "proof": {"audit": audit_counts(task, data)}}
