from __future__ import annotations

import pytest

from zoo.checkpoints.card import cell, standard_error


def test_standard_error_of_a_share() -> None:
    assert standard_error(0.95, 10_000) == pytest.approx(0.00218, abs=1e-5)


def test_cells() -> None:
    assert cell("accuracy", 0.95231) == "95.23%"
    assert cell("ece", 0.12345) == "0.1235"
    assert cell("auroc_ood", None) == "-"
