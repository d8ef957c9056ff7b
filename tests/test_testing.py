from __future__ import annotations

import pytest
import torch
from torch import nn

import zoo.testing


def test_assert_clean_passes_a_clean_model_and_shows_the_report_of_another() -> None:
    x = torch.randn(4, 8)
    clean = nn.Sequential(nn.Linear(8, 8, bias=False), nn.BatchNorm1d(8), nn.Dropout(0.5))
    clean.append(nn.Linear(8, 2))
    zoo.testing.assert_clean(clean, x)
    with pytest.raises(AssertionError, match="bn-one-value-per-sample"):
        zoo.testing.assert_clean(clean, x, fail_on="info")
    bad = nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 8), nn.BatchNorm1d(8))
    with pytest.raises(AssertionError, match="dropout-before-bn"):
        zoo.testing.assert_clean(bad, x)
    zoo.testing.assert_clean(bad, x, rules=["dropout-on-output"])
