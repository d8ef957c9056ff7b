from __future__ import annotations

import math

import pytest

from zoo.study.verdicts import alike, difference, joined, judge, more


def test_a_difference_has_the_error_of_both_means() -> None:
    gap, error = difference([0.9, 0.92, 0.94], [0.8, 0.8, 0.83])
    assert gap == pytest.approx(0.92 - 0.81)
    # Variances 0.0004 and 0.0003, by hand.
    assert error == pytest.approx(math.sqrt(0.0004 / 3 + 0.0003 / 3))


@pytest.mark.parametrize(
    ("gap", "error", "verdict"),
    [
        (0.21, 0.1, "reproduced"),
        (0.19, 0.1, "within noise"),
        (-0.19, 0.1, "within noise"),
        (-0.21, 0.1, "not reproduced"),
        (5.0, None, "one seed"),
    ],
)
def test_twice_the_error_decides(gap: float, error: float | None, verdict: str) -> None:
    assert judge(gap, error) == verdict


def test_one_seed_has_no_verdict_but_a_sign() -> None:
    assert "as stated" in str(more("accuracy", [0.9], [0.8]))
    check = more("accuracy", [0.7], [0.8])
    assert check.verdict == "one seed"
    assert "not as stated" in str(check)


def test_a_bound_has_no_spread() -> None:
    check = more("rise", [0.10, 0.12], 0.05)
    assert check.gap == pytest.approx(0.06)
    assert check.error == pytest.approx(0.01)  # s = 0.01414, over the root of 2
    assert check.verdict == "reproduced"


def test_alike_leaves_room_on_both_sides() -> None:
    left, right = [0.900, 0.901, 0.902], [0.900, 0.901, 0.902]
    assert alike("accuracy", left, right, 0.005).verdict == "reproduced"
    assert alike("accuracy", [v + 0.02 for v in left], right, 0.005).verdict == "not reproduced"
    assert alike("accuracy", [v - 0.02 for v in left], right, 0.005).verdict == "not reproduced"
    assert alike("accuracy", [v + 0.005 for v in left], right, 0.005).verdict == "within noise"


def test_a_statement_is_as_good_as_its_worst_part() -> None:
    assert joined(["reproduced", "reproduced"]) == "reproduced"
    assert joined(["reproduced", "within noise"]) == "within noise"
    assert joined(["within noise", "not reproduced", "reproduced"]) == "not reproduced"
