from __future__ import annotations

from dataclasses import replace

import pytest

from zoo.study.runs import Run
from zoo.study.shift import REPAIRED, SHIFT
from zoo.study.statements import BEST_ACCURACY, Judged, judge_all

EPOCHS = 20


def run(training: float, best: tuple[int, float], final: float, accuracy: float) -> Run:
    """A run whose validation loss falls to ``best`` (epoch, loss), then goes to ``final``.

    The loss of training images falls all the time.
    """
    epoch, least = best
    loss = [least + 0.01 * (epoch - e) for e in range(1, epoch + 1)]
    loss += [least + (final - least) * e / (EPOCHS - epoch) for e in range(1, EPOCHS - epoch + 1)]
    curves = {
        "val/loss": loss,
        "train_eval/loss": [training + 0.01 * (EPOCHS - e) for e in range(1, EPOCHS + 1)],
        "val/accuracy": [accuracy] * EPOCHS,
        "test/accuracy": [accuracy],
    }
    return Run("a run", {}, curves, {})


def three(*arguments: object) -> list[Run]:
    """Three seeds, a little apart."""
    training, (epoch, least), final, accuracy = arguments  # type: ignore[misc]
    return [
        run(training, (epoch, least + d), final + d, accuracy + d / 10)
        for d in (-0.002, 0.0, 0.002)
    ]


# As the documents have them.
TOLD = {
    1: three(0.40, (20, 0.41), 0.41, 0.860),
    2: three(0.05, (6, 0.27), 0.45, 0.905),
    3: three(0.20, (19, 0.25), 0.25, 0.915),
    4: three(0.02, (5, 0.25), 0.40, 0.920),
    5: three(0.18, (15, 0.25), 0.27, 0.906),
    6: three(0.15, (15, 0.22), 0.23, 0.921),
    7: three(0.19, (20, 0.21), 0.21, 0.925),
    8: three(0.12, (20, 0.16), 0.16, BEST_ACCURACY),
}


def rising(runs: list[Run]) -> list[Run]:
    """The same with the loss of training images backwards, and the same at its end."""
    turned = []
    for one in runs:
        falling = one.curves["train_eval/loss"]
        rising = [2 * falling[-1] - value for value in falling]
        turned.append(replace(one, curves={**one.curves, "train_eval/loss": rising}))
    return turned


def beyond(
    accuracy: float, loss: float = 0.3, shift: float = 1.0, repaired: float = 1.0
) -> list[Run]:
    """Three seeds of an experiment beyond, with a variance shift before and after repair."""
    ratios = {SHIFT: [shift], REPAIRED: [repaired]}
    return [
        replace(one, curves={**one.curves, **ratios})
        for one in three(0.1, (20, loss), loss, accuracy)
    ]


# As advised.
ADVISED = {
    4: beyond(0.910, 0.40),
    6: beyond(0.920, 0.25, 1.3),
    9: beyond(0.900, 0.30, 1.6, 1.01),
    10: beyond(0.915, 0.28, 1.01),
    11: beyond(0.910, 0.30),
    12: beyond(0.900, 0.40),
    13: beyond(0.910, 0.40),
    14: beyond(0.915, 0.30),
    15: beyond(0.913, 0.30),
}


def verdicts(runs: dict[int, list[Run]]) -> dict[int, str]:
    return {judged.experiment: judged.verdict for judged in judge_all(runs)}


def test_what_the_documents_saw_is_reproduced() -> None:
    assert verdicts(TOLD) == dict.fromkeys(range(2, 9), "reproduced")


@pytest.mark.parametrize(
    ("experiment", "instead"),
    [
        (2, three(0.05, (19, 0.27), 0.27, 0.905)),  # does not overfit
        (2, three(0.05, (6, 0.27), 0.45, 0.850)),  # validates worse than the small one
        (3, three(0.20, (19, 0.25), 0.25, 0.880)),
        (4, three(0.02, (5, 0.25), 0.40, 0.880)),
        (4, three(0.02, (5, 0.25), 0.40, 0.908)),  # better, but not clearly
        (5, three(0.18, (4, 0.25), 0.27, 0.906)),  # overfits sooner, if less
        (5, three(0.18, (15, 0.25), 0.27, 0.930)),  # not "about as before"
        (6, three(0.15, (15, 0.22), 0.39, 0.921)),  # a loss hardly better
        (6, three(0.15, (15, 0.22), 0.23, 0.917)),  # a loss of accuracy is no gain of 0.001
        (7, three(0.05, (20, 0.21), 0.21, 0.925)),  # a wide gap
        (7, three(0.19, (8, 0.21), 0.21, 0.925)),  # not to the end
        (7, rising(three(0.19, (20, 0.21), 0.21, 0.925))),  # not together
        (7, three(0.19, (20, 0.21), 0.21, 0.915)),  # the least loss, and not the best accuracy
        (8, three(0.12, (20, 0.16), 0.16, 0.900)),
    ],
)
def test_another_outcome_is_not_reproduced(experiment: int, instead: list[Run]) -> None:
    assert verdicts({**TOLD, experiment: instead})[experiment] == "not reproduced"


def test_what_is_advised_is_reproduced() -> None:
    found = verdicts(ADVISED)
    assert {n: v for n, v in found.items() if n > 8} == dict.fromkeys(
        (9, 10, 11, 12, 14, 15), "reproduced"
    )


@pytest.mark.parametrize(
    ("experiment", "instead"),
    [
        (9, beyond(0.900, 0.30, 1.02)),  # shifts nothing
        (9, beyond(0.930, 0.30, 1.6)),  # validates better
        (9, beyond(0.900, 0.30, 0.6, 0.9)),  # not repaired
        (10, beyond(0.915, 0.28, 0.9)),
        (10, beyond(0.890, 0.28)),
        (11, beyond(0.910, 0.45)),
        (12, beyond(0.920, 0.40)),
        (14, beyond(0.910, 0.45)),
        (15, beyond(0.913, 0.45)),
        (15, beyond(0.905, 0.30)),
    ],
)
def test_advice_that_does_not_hold_is_not_reproduced(experiment: int, instead: list[Run]) -> None:
    assert verdicts({**ADVISED, experiment: instead})[experiment] == "not reproduced"


def of(experiment: int, runs: dict[int, list[Run]]) -> Judged:
    return next(one for one in judge_all(runs) if one.experiment == experiment)


def test_the_best_other_is_found_by_validation() -> None:
    lucky = [replace(one, curves={**one.curves, "test/accuracy": [0.99]}) for one in TOLD[3]]
    judged = of(8, {**TOLD, 3: lucky})
    assert judged.verdict == "reproduced"
    assert "8 over 7" in judged.checks[0].what


def test_a_missing_experiment_leaves_the_statements_of_the_others() -> None:
    assert set(verdicts({n: TOLD[n] for n in (1, 2, 3)})) == {2, 3}


def test_what_is_not_finished_is_not_judged() -> None:
    judged = of(3, {2: TOLD[2], 3: TOLD[3][:2]})
    assert (judged.verdict, judged.why) == (
        "not run",
        "seeds that are finished: 3 (experiment 2), 2 (experiment 3)",
    )
    assert of(3, {2: TOLD[2], 3: []}).verdict == "not run"


def test_what_diverged_or_was_not_logged_is_named() -> None:
    message = {"diverged": "the training loss is nan at step 7: the weights were not changed"}
    judged = of(3, {2: TOLD[2], 3: [*TOLD[3][:2], replace(TOLD[3][2], facts=message)]})
    assert judged.verdict == "not judged"
    assert judged.why == "experiment 3 diverged (the training loss is nan at step 7)"
    judged = of(9, {6: ADVISED[6], 9: TOLD[3]})
    assert (judged.verdict, judged.why) == ("not judged", f"{REPAIRED} of a run was not logged")


def test_what_is_not_reproduced_says_why() -> None:
    judged = of(3, {2: TOLD[2], 3: three(0.20, (19, 0.25), 0.25, 0.880)})
    assert judged.why.startswith("accuracy, 3 over 2 is -0.0250, and would have to exceed 0.0003;")
    assert "loss of experiment 3 is least in the last quarter" in judged.why
    assert of(3, TOLD).why == ""
    # What else it is compared with may still fall: that explains nothing of it.
    worse = [replace(one, curves={**one.curves, "val/accuracy": [0.5]}) for one in TOLD[2]]
    judged = of(2, {1: three(0.20, (19, 0.25), 0.25, 0.880), 2: worse})
    assert judged.why
    assert "last quarter" not in judged.why


def test_one_seed_has_no_verdicts() -> None:
    alone = {number: runs[:1] for number, runs in TOLD.items()}
    assert set(verdicts(alone).values()) == {"one seed"}
    assert {one.why for one in judge_all(alone)} == {""}
