from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.diagnostics.replay import Recording

X = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
W = torch.randn(8, 8, generator=torch.Generator().manual_seed(2))


def plain() -> Tensor:
    return F.dropout(X @ W, 0.5) @ W


def nothing_before() -> Tensor:
    return torch.rand(6, 8) * X


def written_after_it_was_read() -> Tensor:
    h = X @ W
    noisy = F.dropout(h, 0.5) + h
    h.relu_()
    return noisy + h


def written_by_a_step() -> Tensor:
    h = X @ W
    view = h.view(-1)
    h.mul_(torch.rand(6, 8))
    return view.view(6, 8) + h


def a_view_is_written_by_a_step() -> Tensor:
    h = X @ W
    h[:, :4].mul_(torch.rand(6, 4))
    h += 1
    return h.t() @ h


def read_then_written_by_a_step() -> Tensor:
    h = X @ W
    noisy = h * torch.rand(6, 8)
    h += noisy
    return noisy + h


def several_results() -> Tensor:
    left, right = F.dropout(X @ W, 0.5).chunk(2, 1)
    values, _ = torch.sort(left, 1)
    return torch.cat([values, right], 1)


def a_number_decides() -> Tensor:
    return X @ W if torch.rand(()) < 0.5 else X


def a_size_decides() -> Tensor:
    kept = torch.nonzero(torch.rand(6) < 0.5)[:, 0]
    return torch.zeros(6, 8).index_add_(0, kept, X[kept]) * len(kept)


def python_decides() -> Tensor:
    return F.dropout(X, 0.5) * (1 if random.random() < 0.5 else -1)


def numpy_decides() -> Tensor:
    return F.dropout(X, 0.5) * float(np.random.rand())  # noqa: NPY002 - the global generator is what is tested


def numbers_that_are_no_result() -> Tensor:
    return X @ W


CASES = [
    plain,
    nothing_before,
    written_after_it_was_read,
    written_by_a_step,
    a_view_is_written_by_a_step,
    read_then_written_by_a_step,
    several_results,
    a_number_decides,
    a_size_decides,
    python_decides,
    numpy_decides,
    numbers_that_are_no_result,
]


@pytest.mark.parametrize("forward", CASES, ids=lambda forward: forward.__name__)
def test_draws_equal_those_of_a_loop(forward) -> None:
    def seed() -> None:
        torch.manual_seed(5)
        random.seed(5)
        np.random.seed(5)  # noqa: NPY002 - as above

    before = X.clone()
    with torch.inference_mode():
        seed()
        expected = [forward() for _ in range(6)]
        seed()
        found = [drawn.clone() for drawn in Recording(forward).draws(6)]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    assert torch.equal(X, before)


def test_what_comes_before_the_first_random_number_runs_once() -> None:
    calls = []

    def forward() -> Tensor:
        calls.append(1)
        return F.dropout(X @ W, 0.5)

    with torch.inference_mode():
        list(Recording(forward).draws(10))
    assert len(calls) == 1


def test_fused_attention_without_a_rate_draws_nothing() -> None:
    x = torch.randn(2, 4, 16)

    def forward() -> Tensor:
        return F.scaled_dot_product_attention(x, x, x)

    with torch.inference_mode():
        recording = Recording(forward)
        first, second = recording.draws(2)
    assert second is first  # nothing was computed again
