from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from matplotlib import image
from sklearn.metrics import log_loss
from torchmetrics.functional.classification import (
    binary_calibration_error,
    multiclass_calibration_error,
)

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


def test_calibration_errors_agree_with_torchmetrics_and_scikit_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(4000, 6, generator=generator)
    probabilities = logits.softmax(1).double()
    labels = torch.multinomial((logits / 3).softmax(1), 1, generator=generator)[:, 0]
    # A confidence of exactly 1 falls into a bin of its own there.
    clamped = probabilities.clamp(1e-7, 1 - 1e-7)
    expected = multiclass_calibration_error(clamped, labels, num_classes=6, n_bins=15, norm="l1")
    assert calibration.ece(probabilities, labels) == pytest.approx(float(expected), abs=1e-6)
    by_class = [
        binary_calibration_error(clamped[:, k], (labels == k).long(), n_bins=15, norm="l1")
        for k in range(6)
    ]
    expected = float(torch.stack(by_class).mean())
    assert calibration.classwise_ece(probabilities, labels) == pytest.approx(expected, abs=1e-6)
    hot = torch.nn.functional.one_hot(labels, 6)
    assert calibration.brier(probabilities, labels) == pytest.approx(
        float((probabilities - hot).square().sum(1).mean()), abs=1e-9
    )
    assert calibration.nll(probabilities, labels) == pytest.approx(
        log_loss(labels, probabilities), abs=1e-6
    )


def test_bins_of_equal_mass() -> None:
    confidence = torch.tensor([0.6, 0.99, 0.7, 0.9, 0.8, 0.95])
    labels = torch.tensor([0, 0, 1, 0, 0, 0])
    probabilities = torch.stack([confidence, 1 - confidence], 1)
    bins = calibration.reliability(probabilities, labels, 3, equal_mass=True)
    assert [(b.count, round(b.confidence, 4), b.accuracy) for b in bins] == [
        (2, 0.65, 0.5),
        (2, 0.85, 1.0),
        (2, 0.97, 1.0),
    ]
    found = calibration.ece(probabilities, labels, 3, equal_mass=True)
    assert found == pytest.approx((0.15 + 0.15 + 0.03) / 3)


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
    many = torch.cat([probabilities] * 20), torch.cat([labels] * 20)
    curves = {
        "one forward": calibration.reliability(probabilities, labels),  # too few in every bin
        "more": calibration.reliability(*many),
    }
    calibration.draw_reliability(curves, tmp_path / "reliability.png", "title")
    calibration.draw_certainty(
        images, probabilities, labels, list("abcd"), tmp_path / "certainty.png", count=4
    )
    for name in ("reliability.png", "certainty.png"):
        picture = image.imread(tmp_path / name)
        assert picture.shape[0] > 300
        assert picture[..., :3].std() > 0.05
    assert len(list(tmp_path.iterdir())) == 2
