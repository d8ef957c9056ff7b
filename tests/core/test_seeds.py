from types import SimpleNamespace

import torch

from zoo.core.seeds import step_seed


def place(step: int, rank: int) -> SimpleNamespace:
    return SimpleNamespace(fit_loop=SimpleNamespace(total_batch_idx=step), global_rank=rank)


def test_every_step_process_and_use_draws_its_own() -> None:
    torch.manual_seed(3)
    seeds = {
        step_seed(place(step, rank), stream)
        for step in range(200)
        for rank in range(8)
        for stream in range(2)
    }
    assert len(seeds) == 200 * 8 * 2
    assert step_seed(place(5, 1)) == step_seed(place(5, 1))
    before = step_seed(place(5, 1))
    torch.manual_seed(4)
    assert step_seed(place(5, 1)) != before
