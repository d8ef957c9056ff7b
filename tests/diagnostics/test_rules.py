from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from zoo.diagnostics.audit import audit, explain_rule
from zoo.diagnostics.rules import RULES, SEVERITIES


def run(code: str) -> set[str]:
    """The rules that an example's audit reports."""
    torch.manual_seed(0)
    names: dict[str, Any] = {"torch": torch, "nn": nn, "F": F}
    exec(code, names)
    report = audit(names["model"], *names["inputs"], **names.get("options", {}))
    return {finding.rule for finding in report.findings}


@pytest.mark.parametrize("rule", RULES.values(), ids=lambda rule: rule.id)
def test_the_bad_example_triggers_the_rule_and_the_good_one_does_not(rule) -> None:
    assert rule.id in run(rule.bad)
    assert rule.id not in run(rule.good)


@pytest.mark.parametrize("rule", RULES.values(), ids=lambda rule: rule.id)
def test_every_rule_says_what_why_and_what_to_do(rule) -> None:
    assert rule.severity in SEVERITIES
    assert rule.sentence.endswith(".")
    text = explain_rule(rule.id)
    for part in (rule.id, rule.severity, rule.sentence, rule.source, rule.fix):
        assert part in text


def test_the_rules_are_those_promised() -> None:
    promised = """dropout-before-bn stochastic-depth-before-bn elementwise-dropout-on-feature-map
    bn-one-value-per-sample bn-small-batch high-drop-rate bn-momentum-convention
    dropout-before-nonzero-activation dropout-before-nonhomogeneous-activation dropout-on-output
    dropout-active-in-eval dropout-rank-mismatch dropout-never-called bias-before-bn
    bn-in-discriminator decay-on-norm-or-bias left-in-eval-at-fit bn-shared
    bn-in-checkpoint dead-units decay-on-embedding"""
    assert set(RULES) == set(promised.split())
