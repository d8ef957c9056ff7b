from __future__ import annotations

import pytest
import torch

from zoo.data import Batches

N = 103
INPUTS, TARGETS = torch.arange(N).float()[:, None], torch.arange(N)


def seen(batches: Batches) -> list[list[int]]:
    return [targets.tolist() for _, targets in batches]


def flat(batches: list[list[int]]) -> list[int]:
    return [index for batch in batches for index in batch]


def test_without_shuffle_every_sample_comes_once_in_order() -> None:
    assert flat(seen(Batches(INPUTS, TARGETS, 10))) == list(range(N))


def test_inputs_stay_with_their_targets() -> None:
    for inputs, targets in Batches(INPUTS, TARGETS, 10, shuffle=True):
        assert torch.equal(inputs[:, 0].long(), targets)


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    def epoch(seed: int, number: int) -> list[list[int]]:
        batches = Batches(INPUTS, TARGETS, 10, shuffle=True, seed=seed)
        batches.set_epoch(number)
        return seen(batches)

    assert epoch(0, 0) == epoch(0, 0)
    assert epoch(0, 0) != epoch(0, 1)
    assert epoch(0, 1) != epoch(1, 0)
    assert sorted(flat(epoch(0, 3))) == list(range(N))


def test_the_last_batch_is_kept_or_dropped() -> None:
    assert [len(b) for b in seen(Batches(INPUTS, TARGETS, 25))] == [25] * 4 + [3]
    dropped = Batches(INPUTS, TARGETS, 25, drop_last=True)
    assert [len(b) for b in seen(dropped)] == [25] * 4
    assert len(dropped) == 4


def test_a_resumed_epoch_goes_on_with_the_next_batch() -> None:
    whole = Batches(INPUTS, TARGETS, 10, shuffle=True, seed=7)
    whole.set_epoch(2)
    expected = seen(whole)

    interrupted = Batches(INPUTS, TARGETS, 10, shuffle=True, seed=7)
    interrupted.set_epoch(2)
    iterator = iter(interrupted)
    first = [next(iterator)[1].tolist() for _ in range(4)]
    resumed = Batches(INPUTS, TARGETS, 10, shuffle=True, seed=999)
    resumed.load_state_dict(interrupted.state_dict())
    assert first + seen(resumed) == expected
    assert seen(resumed) == expected  # and the next pass is a whole one


def test_a_finished_epoch_resumes_with_a_whole_one() -> None:
    batches = Batches(INPUTS, TARGETS, 10, shuffle=True)
    seen(batches)
    resumed = Batches(INPUTS, TARGETS, 10, shuffle=True)
    resumed.load_state_dict(batches.state_dict())
    assert len(seen(resumed)) == 11


def test_an_independent_pass_leaves_the_position_alone() -> None:
    batches = Batches(INPUTS, TARGETS, 10, shuffle=True)
    iterator = iter(batches)
    next(iterator)
    before = batches.state_dict()
    assert len(seen(batches.fresh())) == 11
    assert batches.state_dict() == before


def test_two_processes_train_on_disjoint_halves_with_as_many_steps() -> None:
    shares = [
        seen(Batches(INPUTS, TARGETS, 10, shuffle=True, rank=rank, world=2)) for rank in (0, 1)
    ]
    assert [len(share) for share in shares] == [5, 5]
    both = flat(shares[0] + shares[1])
    assert len(both) == len(set(both)) == 100


def test_two_processes_evaluate_every_sample_exactly_once() -> None:
    shares = [seen(Batches(INPUTS, TARGETS, 10, rank=rank, world=2)) for rank in (0, 1)]
    assert sorted(flat(shares[0] + shares[1])) == list(range(N))


@pytest.mark.parametrize("world", [1, 2])
def test_samples_come_as_often_as_their_weights_say(world: int) -> None:
    """To within one, of an epoch as long as without, and at random within that."""
    weights = torch.tensor([0.0, 0.25, 1.0, 2.5]).repeat(N)[:N]
    expected = weights * (N / weights.sum())
    total = torch.zeros(N)
    for epoch in range(40):
        counts = torch.zeros(N)
        for rank in range(world):
            batches = Batches(
                INPUTS, TARGETS, 1, shuffle=True, rank=rank, world=world, weights=weights
            )
            batches.set_epoch(epoch)
            counts += torch.bincount(torch.tensor(flat(seen(batches))), minlength=N)
        assert counts.sum() == N // world * world
        assert (counts <= expected.ceil()).all()
        assert (counts < expected.floor()).sum() <= world - 1  # what fills no global batch is left
        total += counts
    assert total[weights == 0].sum() == 0
    for weight in (0.25, 1.0, 2.5):
        mean = total[weights == weight].mean() / 40
        assert mean == pytest.approx(expected[weights == weight][0].item(), rel=0.06)


def test_weighted_samples_are_drawn_anew_each_epoch_and_in_random_order() -> None:
    batches = Batches(INPUTS, TARGETS, 10, shuffle=True, weights=torch.rand(N) + 0.1)
    first = flat(seen(batches))
    assert flat(seen(batches)) == first
    batches.set_epoch(1)
    assert sorted(flat(seen(batches))) != sorted(first)
    # Draws of one sample would lie side by side if what is drawn were not shuffled again.
    places: dict[int, list[int]] = {}
    for place, index in enumerate(first):
        places.setdefault(index, []).append(place)
    gaps = [at[1] - at[0] for at in places.values() if len(at) > 1]
    assert len(gaps) > 5
    assert sum(gaps) / len(gaps) > 10
