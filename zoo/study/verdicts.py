"""When a statement counts as reproduced: one rule for experiments and claims."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Literal

# The last two are of statements for which something is missing, or of which a fit diverged.
Verdict = Literal[
    "reproduced", "within noise", "not reproduced", "one seed", "not run", "not judged"
]


def standard_error(values: Sequence[float]) -> float | None:
    """That of a mean over seeds; None of one, whose spread is not known."""
    return stdev(values) / len(values) ** 0.5 if len(values) > 1 else None


def difference(left: Sequence[float], right: Sequence[float]) -> tuple[float, float | None]:
    """The difference of two means over seeds, and its standard error.

    Args:
        left, right: a value for each seed.

    Returns:
        ``mean(left) - mean(right)`` and √(s₁²/n₁ + s₂²/n₂); None for the error where there is one
        seed, of which no spread is known.
    """
    gap = mean(left) - mean(right)
    if min(len(left), len(right)) < 2:
        return gap, None
    return gap, math.sqrt(stdev(left) ** 2 / len(left) + stdev(right) ** 2 / len(right))


def judge(gap: float, error: float | None) -> Verdict:
    """Reproduced if a difference that should be positive exceeds twice its standard error."""
    if error is None:
        return "one seed"
    if gap > 2 * error:
        return "reproduced"
    return "not reproduced" if gap < -2 * error else "within noise"


def joined(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict of a statement that makes several: the least favorable of theirs."""
    order: list[Verdict] = ["not reproduced", "one seed", "within noise", "reproduced"]
    return min(verdicts, key=order.index)


@dataclass(frozen=True)
class Check:
    """One number by which a statement is judged: positive where it is as stated."""

    what: str
    gap: float
    error: float | None  # the standard error of the gap over seeds
    verdict: Verdict

    def __str__(self) -> str:
        noise = "" if self.error is None else f" ± {2 * self.error:.4f}"
        as_stated = ""
        if self.verdict == "one seed":  # which has no noise to be held against
            as_stated = ", as stated" if self.gap > 0 else ", not as stated"
        return f"{self.what}: {self.gap:+.4f}{noise} ({self.verdict}{as_stated})"

    @property
    def shortfall(self) -> str:
        """What is lacking for "reproduced"; empty where nothing is, or where no spread is known."""
        if self.error is None or self.verdict == "reproduced":
            return ""
        return f"{self.what} is {self.gap:+.4f}, and would have to exceed {2 * self.error:.4f}"


def more(what: str, left: Sequence[float], right: Sequence[float] | float) -> Check:
    """Checks that ``left`` is the larger.

    Args:
        what: is compared, with the unit.
        left: a value for each seed.
        right: the same, or a bound.
    """
    # A bound has no spread; for one seed there is still none known.
    bound = [float(right)] * len(left) if isinstance(right, int | float) else right
    gap, error = difference(left, bound)
    return Check(what, gap, error, judge(gap, error))


def alike(what: str, left: Sequence[float], right: Sequence[float], margin: float) -> Check:
    """Checks that two means differ by less than ``margin``."""
    gap, error = difference(left, right)
    room = margin - abs(gap)
    return Check(f"{what}: {margin:g} less what they differ by", room, error, judge(room, error))
