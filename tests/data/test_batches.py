from __future__ import annotations

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
