from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from matplotlib import image

from zoo.diagnostics import calibration


def test_scores_of_a_small_example() -> None:
    probabilities = torch.tensor([[0.8, 0.2], [0.6, 0.4], [0.3, 0.7], [0.1, 0.9]])
    labels = torch.tensor([0, 1, 1, 1])
    scores = calibration.scores(probabilities, labels)
    assert scores["accuracy"] == 0.75
    expected = -(math.log(0.8) + math.log(0.4) + math.log(0.7) + math.log(0.9)) / 4
    assert scores["nll"] == pytest.approx(expected, rel=1e-6)
    assert scores["brier"] == pytest.approx((0.08 + 0.72 + 0.18 + 0.02) / 4, rel=1e-6)
    assert scores["ece"] == pytest.approx((0.2 + 0.6 + 0.3 + 0.1) / 4, rel=1e-6)
    assert scores["auroc_errors"] == 1.0  # the mistake is the least certain


def test_ece_counts_a_confidence_of_exactly_one() -> None:
    probabilities = torch.tensor([[1.0, 0.0]] * 4)
    labels = torch.tensor([0, 0, 0, 1])
    assert calibration.ece(probabilities, labels) == pytest.approx(0.25)
    (last,) = calibration.reliability(probabilities, labels)
    assert (last.low, last.high, last.count) == (14 / 15, 1.0, 4)


def test_ece_of_a_calibrated_predictor_is_small_and_of_a_boaster_large() -> None:
    generator = torch.Generator().manual_seed(0)
    confidence = 0.5 + torch.rand(50_000, generator=generator) / 2
    right = torch.rand(50_000, generator=generator) < confidence
    probabilities = torch.stack([confidence, 1 - confidence], 1)
    labels = (~right).long()
    assert calibration.ece(probabilities, labels) < 0.01
    sharp = torch.stack([confidence.sqrt(), 1 - confidence.sqrt()], 1)
    assert calibration.ece(sharp, labels) > 0.05


def test_auroc_with_ties_and_with_one_kind_only() -> None:
    positive = torch.tensor([0, 0, 1, 1])
    assert calibration.auroc(torch.tensor([1.0, 2.0, 2.0, 300.0]), positive) == 0.875
    assert calibration.auroc(torch.tensor([5.0, 5.0, 5.0, 5.0]), positive) == 0.5
    assert calibration.auroc(torch.rand(4), torch.ones(4)) is None


def test_pictures(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.randn(20, 4, generator=generator).softmax(1)
    labels = torch.randint(4, (20,), generator=generator)
    images = torch.randint(256, (20, 3, 8, 8), generator=generator, dtype=torch.uint8)
    curves = {"one forward": calibration.reliability(probabilities, labels)}
    calibration.draw_reliability(curves, tmp_path / "reliability.png", "title")
    calibration.draw_certainty(
        images, probabilities, labels, list("abcd"), tmp_path / "certainty.png", count=4
    )
    for name in ("reliability.png", "certainty.png"):
        picture = image.imread(tmp_path / name)
        assert picture.shape[0] > 300
        assert picture[..., :3].std() > 0.05
    assert len(list(tmp_path.iterdir())) == 2
