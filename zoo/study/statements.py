"""What the documents say of the experiments, and the rule by which each is judged.

Every comparison is of means over seeds, and counts as reproduced if it has the stated sign and
exceeds 2·√(s₁²/n + s₂²/n) (``zoo.study.verdicts``). ``IN_NUMBERS`` says what "fast", "tiny" and
other words of degree mean. Test images choose nothing: the best of several experiments is found by
validation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

from zoo.diagnostics.variance_shift import NOTHING
from zoo.study.runs import Run
from zoo.study.shift import REPAIRED, SHIFT
from zoo.study.verdicts import Check, Verdict, alike, joined, more

RISE = 0.05  # nats
GAP = 0.05  # nats
ABOUT = 0.005  # of accuracy
# Of accuracy, too: what the documents say that (6) gains. It may not lose as much, which would be
# the opposite; less than that is fewer than five of 5,000 images.
GAIN = 0.001
MUCH = 0.8  # of a loss
LAST = 0.75  # the part of the epochs after which the last quarter begins
BEST_ACCURACY = 0.948  # of experiment 8 in the documents, on test images

# For readers of the report, too: words of degree, and what they are in numbers.
IN_NUMBERS = {
    "accuracy, loss": "of validation images at the final epoch, unless test images are named",
    "overfits": f"the validation loss ends {RISE} nats or more above its least",
    "fast": "the validation loss is least in the first half of the epochs",
    "slower": "the validation loss is least in a later epoch",
    "to the end": "the validation loss is least in the last quarter of the epochs, in which the "
    "loss of clean training images falls, too",
    "a tiny gap": f"the validation loss ends at most {GAP} nats above that of clean training "
    "images",
    "about as before": f"within {100 * ABOUT:g} points of accuracy",
    "clearly better": f"by more than {100 * ABOUT:g} points of accuracy",
    f"about {GAIN} above": f"within {100 * ABOUT:g} points of it, and not {100 * GAIN:g} points or "
    "more below",
    "best generalization": "the least loss and the highest accuracy of the medium networks",
    "much better": f"a loss at least {100 * (1 - MUCH):.0f} % less",
    "shifts": "the variance of a BatchNorm's input with dropout on is "
    f"e^{NOTHING:g} times that with dropout off, or more, or as much less, at the worst BatchNorm",
}

Runs = Mapping[int, Sequence[Run]]  # by the experiment's number, a run a seed


@dataclass(frozen=True)
class Statement:
    """A sentence of the documents on one of the experiments."""

    experiment: int
    sentence: str
    checks: Callable[[Runs], list[Check]]
    needs: tuple[int, ...]  # the experiments that it compares


@dataclass(frozen=True)
class Judged:
    """A statement, held against runs; ``why`` is empty where it is reproduced."""

    experiment: int
    sentence: str
    verdict: Verdict
    checks: Sequence[Check] = ()
    why: str = ""


def judge_all(runs: Runs) -> list[Judged]:
    """Every statement whose experiments are among those given, which may lack runs."""
    return [
        _judged(statement, {number: runs[number] for number in statement.needs})
        for statement in STATEMENTS
        if runs.keys() >= set(statement.needs)
    ]


def _judged(statement: Statement, runs: Runs) -> Judged:
    told = statement.experiment, statement.sentence
    counts = {number: len(members) for number, members in runs.items()}
    if not all(counts.values()) or len(set(counts.values())) > 1:
        seeds = ", ".join(f"{count} (experiment {number})" for number, count in counts.items())
        return Judged(*told, "not run", why=f"seeds that are finished: {seeds}")
    for number, members in runs.items():
        for run in members:
            if run.diverged:
                why = f"experiment {number} diverged ({run.diverged.split(':')[0]})"
                return Judged(*told, "not judged", why=why)
    try:
        checks = statement.checks(runs)
        why = _why(checks, statement.experiment, runs[statement.experiment])
    except KeyError as missing:
        return Judged(*told, "not judged", why=f"{missing.args[0]} was not logged")
    return Judged(*told, joined([check.verdict for check in checks]), checks, why)


def _why(checks: Sequence[Check], experiment: int, runs: Sequence[Run]) -> str:
    """Which parts are not as stated and by how much, and whether more epochs may change it.

    Args:
        checks: of the statement.
        experiment: that the statement is about.
        runs: of that experiment.
    """
    parts = [check.shortfall for check in checks if check.shortfall]
    if parts and min(best_at(runs)) > LAST:
        parts.append(
            f"the validation loss of experiment {experiment} is least in the last quarter of the "
            "epochs, so that more of them may change this"
        )
    return "; ".join(parts)


def accuracy(runs: Sequence[Run]) -> list[float]:
    return [run.final("val/accuracy") for run in runs]


def loss(runs: Sequence[Run]) -> list[float]:
    return [run.final("val/loss") for run in runs]


def rise(runs: Sequence[Run]) -> list[float]:
    return [run.final("val/loss") - run.best("val/loss") for run in runs]


def gap(runs: Sequence[Run]) -> list[float]:
    return [run.gap for run in runs]


def best_at(runs: Sequence[Run]) -> list[float]:
    """The part of the run, above 0 and up to 1, after which the validation loss is least."""
    return [run.epoch_of_best("val/loss") / run.epochs for run in runs]


def logarithm(runs: Sequence[Run], ratio: str) -> list[float]:
    """How far a ratio is from 1, either way."""
    return [abs(math.log(run.final(ratio))) for run in runs]


def overfits(runs: Sequence[Run]) -> Check:
    return more(f"rise of the validation loss over {RISE} nats", rise(runs), RISE)


def _medium(r: Runs) -> list[Check]:
    early = [0.5 - part for part in best_at(r[2])]
    return [
        overfits(r[2]),
        more("part of the run left at half when the loss is least", early, 0.0),
        more("accuracy, 2 over 1", accuracy(r[2]), accuracy(r[1])),
    ]


def _augmentation(r: Runs) -> list[Check]:
    return [
        more("accuracy, 3 over 2", accuracy(r[3]), accuracy(r[2])),
        more("loss (nats), 2 over 3", loss(r[2]), loss(r[3])),
    ]


def _batch_norm(r: Runs) -> list[Check]:
    clearly = [value + ABOUT for value in accuracy(r[2])]
    return [overfits(r[4]), more(f"accuracy, 4 over 2 + {ABOUT}", accuracy(r[4]), clearly)]


def _dropout(r: Runs) -> list[Check]:
    return [
        more("part of the run when the loss is least, 5 over 2", best_at(r[5]), best_at(r[2])),
        alike("accuracy, 5 and 2", accuracy(r[5]), accuracy(r[2]), ABOUT),
        more("loss (nats), 2 over 5", loss(r[2]), loss(r[5])),
    ]


def _both(r: Runs) -> list[Check]:
    raised = [value + GAIN for value in accuracy(r[4])]
    lowered = [value - GAIN for value in accuracy(r[4])]
    much = [MUCH * value for value in loss(r[4])]
    return [
        more(f"accuracy, 6 over 4 - {GAIN}", accuracy(r[6]), lowered),
        alike(f"accuracy, 6 and 4 + {GAIN}", accuracy(r[6]), raised, ABOUT),
        more(f"loss (nats), {MUCH:g} of 4 over 6", much, loss(r[6])),
    ]


def _all(r: Runs) -> list[Check]:
    room = [GAP - value for value in gap(r[7])]
    others = {number: loss(r[number]) for number in (2, 3, 4, 5, 6)}
    rival = min(others, key=lambda number: mean(others[number]))
    accurate = max(others, key=lambda number: mean(accuracy(r[number])))
    training = [run.values("train_eval/loss") for run in r[7]]
    before = [values[math.ceil(LAST * len(values)) - 1] for values in training]
    return [
        more("part of the run over three quarters when the loss is least", best_at(r[7]), LAST),
        more(
            "loss of training images (nats), at three quarters over the end",
            before,
            [values[-1] for values in training],
        ),
        more(f"gap (nats) below {GAP}", room, 0.0),
        more(f"loss (nats), {rival} (the best other medium one) over 7", others[rival], loss(r[7])),
        more(
            f"accuracy, 7 over {accurate} (the best other medium one)",
            accuracy(r[7]),
            accuracy(r[accurate]),
        ),
    ]


def _large(r: Runs) -> list[Check]:
    rival = max(range(1, 8), key=lambda n: mean(accuracy(r[n])))
    ours, best_other = ([run.final("test/accuracy") for run in r[n]] for n in (8, rival))
    stated = [BEST_ACCURACY] * len(ours)
    return [
        more(f"test accuracy, 8 over {rival} (the best other in validation)", ours, best_other),
        alike(f"test accuracy, 8 and {BEST_ACCURACY}", ours, stated, ABOUT),
    ]


def _drop_first(r: Runs) -> list[Check]:
    room = [NOTHING - value for value in logarithm(r[9], REPAIRED)]
    return [
        more(
            f"|ln ratio| of variances, dropout on / off, over {NOTHING}",
            logarithm(r[9], SHIFT),
            NOTHING,
        ),
        more("accuracy, 6 over 9", accuracy(r[6]), accuracy(r[9])),
        more(f"|ln ratio| of variances, re-estimated / evaluation, below {NOTHING}", room, 0.0),
    ]


def _drop_last(r: Runs) -> list[Check]:
    room = [NOTHING - value for value in logarithm(r[10], SHIFT)]
    return [
        more(f"|ln ratio| of variances, dropout on / off, below {NOTHING}", room, 0.0),
        more("accuracy, 10 over 9", accuracy(r[10]), accuracy(r[9])),
    ]


def _weight_decay(r: Runs) -> list[Check]:
    return [more("loss (nats), 4 over 11", loss(r[4]), loss(r[11]))]


def _norm_last(r: Runs) -> list[Check]:
    return [more("accuracy, 4 over 12", accuracy(r[4]), accuracy(r[12]))]


def _residual_dropout(r: Runs) -> list[Check]:
    return [more("loss (nats), 13 over 14", loss(r[13]), loss(r[14]))]


def _stochastic_depth(r: Runs) -> list[Check]:
    about = [value - ABOUT for value in accuracy(r[14])]
    return [
        more("loss (nats), 13 over 15", loss(r[13]), loss(r[15])),
        more(f"accuracy, 15 over 14 less {ABOUT}", accuracy(r[15]), about),
    ]


STATEMENTS = (
    Statement(
        2,
        "The medium network overfits fast, but validates better than the small one.",
        _medium,
        (1, 2),
    ),
    Statement(
        3, "With augmentation it validates better, through more data.", _augmentation, (2, 3)
    ),
    Statement(
        4, "With BatchNorm it still overfits, with clearly better validation.", _batch_norm, (2, 4)
    ),
    Statement(
        5,
        "With dropout it overfits slower: accuracy about as before, a better loss.",
        _dropout,
        (2, 5),
    ),
    Statement(
        6,
        "BatchNorm and dropout: accuracy about 0.001 above BatchNorm alone, a much better loss.",
        _both,
        (4, 6),
    ),
    Statement(
        7,
        "All three: training and validation fall together to the end, with a tiny gap and the best "
        "generalization of the medium ones.",
        _all,
        (2, 3, 4, 5, 6, 7),
    ),
    Statement(
        8,
        "The large network with all three has the best accuracy, 0.948.",
        _large,
        tuple(range(1, 9)),
    ),
    # Of the study beyond: what the documents advise without an experiment.
    Statement(
        9,
        "Dropout between convolution and BatchNorm shifts the variance and validates worse than "
        "after the activation; re-estimated statistics have the variance of evaluation.",
        _drop_first,
        (6, 9),
    ),
    Statement(
        10,
        "Dropout after the last BatchNorm alone shifts nothing, and validates better than before "
        "each.",
        _drop_last,
        (9, 10),
    ),
    Statement(
        11, "Weight decay in place of dropout: a better loss than without.", _weight_decay, (4, 11)
    ),
    Statement(
        12, "BatchNorm validates better before the activation than after it.", _norm_last, (4, 12)
    ),
    Statement(
        14,
        "Dropout between the convolutions of a residual block: a better loss than without.",
        _residual_dropout,
        (13, 14),
    ),
    Statement(
        15,
        "Stochastic depth in place of dropout: a better loss than without, and an accuracy no more "
        "than 0.005 below dropout's.",
        _stochastic_depth,
        (13, 14, 15),
    ),
)
