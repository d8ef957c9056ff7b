from __future__ import annotations

import json

import pytest
import torch

from tests.diagnostics.classifiers import drawn, logits_of
from zoo.core.checkpoint_config import Calibration
from zoo.core.schema import check
from zoo.evaluation import calibrated


def test_what_a_checkpoint_keeps_gives_the_same_again() -> None:
    fitted = calibrated.fit(*logits_of(drawn(3000, seed=1)))
    kept = json.loads(json.dumps(fitted.as_config()))
    check(kept, Calibration, "config.json", "calibration")
    again = calibrated.Fitted.from_config(kept)
    logits, labels = logits_of(drawn(5000, seed=2))
    assert again.calibration.temperature == pytest.approx(fitted.calibration.temperature)
    assert again.confidence == fitted.confidence
    for sets, others in ((fitted.aps, again.aps), (fitted.lac, again.lac)):
        assert list(sets) == list(others) == [0.9, 0.95, 0.99]
        for coverage, each in sets.items():
            same = (each(logits) == others[coverage](logits)).double().mean()
            assert same > 0.9999  # a threshold keeps nine digits
    scores = calibrated.before_and_after(logits, labels, fitted)
    assert scores["after"]["ece"] < 0.02 < scores["before"]["ece"]
    assert scores["after"]["accuracy"] == scores["before"]["accuracy"]


def test_sets_are_scored_in_all_and_by_class() -> None:
    logits, labels = logits_of(drawn(3000, seed=1))
    fitted = calibrated.fit(logits, labels)
    logits, labels = logits_of(drawn(4000, seed=2))
    found = calibrated.set_scores(logits, labels, fitted.aps[0.95], list("abcde"))
    chosen = fitted.aps[0.95](logits)
    held = [bool(row[label]) for row, label in zip(chosen, labels, strict=True)]
    assert found["coverage"] == pytest.approx(sum(held) / 4000)
    assert found["size"] == pytest.approx(float(chosen.sum()) / 4000)
    assert found["empty"] == sum(not row.any() for row in chosen) / 4000
    of_c = [one for one, label in zip(held, labels.tolist(), strict=True) if label == 2]
    assert found["by_class"]["c"]["coverage"] == pytest.approx(sum(of_c) / len(of_c))


def test_out_of_distribution_scores() -> None:
    logits, labels = logits_of(drawn(3000, seed=1))
    fitted = calibrated.fit(logits, labels)
    found = calibrated.ood_scores(logits, 0.01 * torch.randn(500, 5).double(), fitted)
    assert set(found) == {"entropy", "entropy, calibrated", "maximum logit", "energy"}
    assert min(found.values()) > 0.9  # small logits: nothing is known of these
