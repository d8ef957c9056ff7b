"""For users' own tests: ``zoo.testing.assert_clean(model, torch.randn(2, 3, 32, 32))``."""

from __future__ import annotations

from typing import Any

from torch import nn

from zoo.diagnostics.audit import audit


def assert_clean(
    model: nn.Module, *example_inputs: Any, fail_on: str = "warning", **options: Any
) -> None:
    """Fails a test where the audit finds something, or could not follow all of the model.

    Args:
        model, example_inputs, options: as ``zoo.audit`` takes them.
        fail_on: the least severity that counts, ``info``, ``warning`` or ``error``.

    Raises:
        AssertionError: with the report as its message.
    """
    __tracebackhide__ = True
    report = audit(model, *example_inputs, **options)
    if report.at_least(fail_on) or not report.audited:
        raise AssertionError(f"\n{report}")
