from __future__ import annotations

from pathlib import Path

import pytest
import torch
from matplotlib import image

import zoo
from tests.diagnostics.classifiers import Overconfident, drawn
from zoo.diagnostics import selective
from zoo.diagnostics.selective import Confidence, aurc, choose_confidence, coverage_at_risk


def test_aurc_and_coverage_equal_a_plain_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    confidence = torch.rand(500, generator=generator, dtype=torch.float64)
    right = torch.rand(500, generator=generator) < confidence.sqrt()
    pairs = sorted(zip(confidence.tolist(), right.tolist(), strict=True), reverse=True)
    risks, wrong = [], 0
    for count, (_, is_right) in enumerate(pairs, 1):
        wrong += not is_right
        risks.append(wrong / count)
    assert aurc(confidence, right) == pytest.approx(sum(risks) / 500, abs=1e-12)
    for risk in (0.0, 0.05, 0.2, 1.0):
        kept = max((n for n, r in enumerate(risks, 1) if r <= risk), default=0)
        assert coverage_at_risk(confidence, right, risk) == kept / 500
    # Equal confidences say nothing: the risk is the error rate at every coverage.
    assert aurc(torch.ones(500), right) == pytest.approx(risks[-1], abs=1e-12)
    assert coverage_at_risk(torch.ones(500), right, risks[-1] / 2) == 0


def test_a_half_tied_example_by_hand() -> None:
    confidence = torch.tensor([0.9, 0.5, 0.5, 0.1])
    right = torch.tensor([True, True, False, False])
    # Of the two in the middle each is as often first: half a mistake each.
    assert aurc(confidence, right) == pytest.approx((0 + 0.5 / 2 + 1 / 3 + 2 / 4) / 4)
    assert coverage_at_risk(confidence, right, 0.3) == 0.25


def test_max_logit_p_norm_is_what_it_says() -> None:
    logits = torch.tensor([[4.0, 1.0, 1.0], [1.0, 0.0, -1.0]])
    assert Confidence(1)(logits).tolist() == pytest.approx([2 / 4, 1 / 2])
    assert Confidence(2)(logits).tolist() == pytest.approx([2 / 6**0.5, 1 / 2**0.5])
    assert Confidence()(logits).tolist() == pytest.approx(logits.softmax(1).amax(1).tolist())
    torch.testing.assert_close(Confidence(3)(logits * 7 + 2), Confidence(3)(logits))
    assert Confidence(2)(torch.ones(1, 3)).tolist() == [0.0]


@pytest.mark.parametrize("p", [2, 5])
def test_rounding_ranks_no_answers(p: int) -> None:
    logits = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0)) * 7
    assert Confidence(p)(logits).unique().tolist() == pytest.approx([2 ** (-1 / p)], abs=1e-6)


def test_a_norm_that_ranks_next_to_nothing_is_not_chosen() -> None:
    # One class is above the mean, and it is wrong where the others are far apart, to which the
    # 1-norm is blind.
    generator = torch.Generator().manual_seed(0)
    others = -torch.rand(1000, 9, generator=generator)
    logits = torch.cat([-others.sum(1, keepdim=True), others], dim=1)
    assert Confidence(1)(logits).unique().tolist() == pytest.approx([0.5], abs=1e-6)
    wrong = others.std(1) > others.std(1).median()
    assert choose_confidence(logits, wrong.long()).p not in (None, 1)


def test_the_confidence_is_chosen_on_held_out_data() -> None:
    model = Overconfident()
    # The labels are drawn by these logits: nothing ranks better than their maximum probability.
    assert zoo.confidence(model, drawn(6000, seed=1)).p is None
    # Where the scale of a row says nothing, dividing by its norm helps.
    batches = drawn(6000, seed=1)
    x, labels = torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])
    scale = torch.rand(len(x), 1, generator=torch.Generator().manual_seed(0)) * 20
    unit = torch.nn.functional.normalize(model.eval().linear(x).detach(), dim=1)
    chosen = choose_confidence(unit * scale, labels)
    right = unit.argmax(1) == labels
    assert chosen.p is not None
    found = {p: aurc(Confidence(p)(unit * scale), right) for p in (None, *selective.POWERS)}
    assert found[chosen.p] == min(found.values()) < found[None] - 0.01


def test_a_picture_of_risk(tmp_path: Path) -> None:
    curves = {"a": torch.linspace(0, 0.1, 50), "b": torch.linspace(0, 0.2, 50)}
    selective.draw_risk_coverage(curves, tmp_path / "risk.png", "title")
    assert image.imread(tmp_path / "risk.png")[..., :3].std() > 0.05
