from __future__ import annotations

import pytest
import torch

import zoo
from tests.diagnostics.classifiers import Overconfident, drawn, logits_of


@pytest.mark.parametrize("method", ["aps", "lac"])
@pytest.mark.parametrize("coverage", [0.8, 0.95])
def test_sets_hold_the_truth_as_often_as_asked(method: str, coverage: float) -> None:
    model = Overconfident()
    for calibrated in (False, True):
        held = []
        for seed in range(0, 20, 2):
            held_out = drawn(2000, seed)
            logits, labels = logits_of(drawn(4000, seed + 1))
            given = zoo.calibrate(model, held_out) if calibrated else None
            sets = zoo.prediction_sets(model, held_out, coverage, method=method, calibration=given)
            chosen = sets(logits)
            assert chosen.shape == logits.shape
            assert torch.equal(chosen, sets(logits))
            held.append(float(chosen.gather(1, labels[:, None]).double().mean()))
        # Three times the errors of both samples.
        error = 3 * (coverage * (1 - coverage) * (1 / 2000 + 1 / 4000) / len(held)) ** 0.5
        assert sum(held) / len(held) == pytest.approx(coverage, abs=error)


def test_thresholds_by_hand() -> None:
    """Nineteen images of two classes: of a coverage of 0.9 it is the 18th smallest score."""
    p = torch.linspace(0.05, 0.95, 19)
    logits = torch.stack([p.log(), (1 - p).log()], 1)
    loader = [(logits, torch.zeros(19).long())]
    sets = zoo.prediction_sets(torch.nn.Identity(), loader, 0.9, method="lac")
    assert sets.threshold == pytest.approx(1 - 0.1, abs=1e-6)
    found = sets(torch.tensor([[0.95, 0.05], [0.5, 0.5], [0.91, 0.09]]).log())
    assert found.tolist() == [[True, False], [True, True], [True, False]]
    aps = zoo.prediction_sets(torch.nn.Identity(), loader, 0.9)
    part = torch.rand(19, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)[:, 0]
    # Of the likelier class its own part, of the other all of the likelier and its own part.
    own = torch.where(p > 0.5, part * p, (1 - p) + part * p)
    assert aps.threshold == pytest.approx(float(own.sort().values[17]), abs=1e-6)


def test_too_few_images_and_bad_arguments() -> None:
    model = Overconfident()
    with pytest.raises(zoo.UserError, match=r"18 held-out images are too few .* at least 19"):
        zoo.prediction_sets(model, drawn(18, seed=1))
    assert zoo.prediction_sets(model, drawn(19, seed=1)).coverage == 0.95
    with pytest.raises(zoo.UserError, match="between 0 and 1"):
        zoo.prediction_sets(model, drawn(18, seed=1), 95)
    with pytest.raises(zoo.UserError, match="aps or lac"):
        zoo.prediction_sets(model, drawn(18, seed=1), method="raps")
