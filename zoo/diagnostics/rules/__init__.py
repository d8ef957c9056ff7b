"""What the audit looks for: each rule a small function over a recorded forward, by subject."""

from zoo.diagnostics.rules import dropout  # isort: skip - reports begin with dropout before BatchNorm
from zoo.diagnostics.rules import batch_norm, training
from zoo.diagnostics.rules.base import RULES, SEVERITIES, Finding, Rule, Subject

__all__ = ["RULES", "SEVERITIES", "Finding", "Rule", "Subject", "batch_norm", "dropout", "training"]
