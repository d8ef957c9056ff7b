from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.diagnostics.replay import STACK_BYTES, Recording, _Replay

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


def the_batch_size_is_written_in() -> Tensor:
    return F.dropout(X @ W, 0.5).view(6, 2, 4).reshape(6, -1) @ W


def an_operation_across_the_batch() -> Tensor:
    h = F.dropout(X @ W, 0.5)
    return (h - h.mean(0)).softmax(0) + h.sum() + h[0]


def several_layers() -> Tensor:
    h = F.dropout(X @ W, 0.5)
    h = F.dropout2d((h @ W).view(6, 2, 2, 2).to(memory_format=torch.channels_last), 0.5)
    h = h.flatten(1) * torch.empty(6, 1).bernoulli_(0.5)
    return F.alpha_dropout(h @ W, 0.5) + torch.rand_like(h)


def filled_by_steps() -> Tensor:
    h = torch.empty(6, 8)
    h[:, :4] = F.dropout(X, 0.5)[:, 4:]
    h[:, 4:] = torch.randn(6, 4)
    padded = torch.zeros(6, 16)
    padded[:, 8:] = h
    return padded[:, 4:12] @ W


def a_draw_decides_the_next() -> Tensor:
    return X * torch.bernoulli(torch.rand(6, 8))


def fused_attention() -> Tensor:
    q = (F.dropout(X, 0.5) @ W).view(1, 2, 6, 4)
    return F.scaled_dot_product_attention(q, q, q).reshape(6, 8)


STACKED = [
    plain,
    nothing_before,
    written_after_it_was_read,
    written_by_a_step,
    a_view_is_written_by_a_step,
    read_then_written_by_a_step,
    several_results,
    the_batch_size_is_written_in,
    an_operation_across_the_batch,
    filled_by_steps,
    fused_attention,
]
CASES = [
    *STACKED,
    several_layers,
    a_draw_decides_the_next,
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
        for count in (6, 25):
            seed()
            expected = [forward() for _ in range(count)]
            after = torch.rand(3)
            seed()
            recording = Recording(forward)
            found = [drawn.clone() for drawn in recording.draws(count)]
            assert torch.equal(torch.rand(3), after)  # as many random numbers were drawn
            for a, b in zip(found, expected, strict=True):
                torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    assert torch.equal(X, before)
    assert bool(recording.stacked) == (forward in STACKED)


def test_what_differs_from_a_loop_runs_one_after_another(monkeypatch) -> None:
    with torch.inference_mode():
        torch.manual_seed(5)
        expected = [plain() for _ in range(20)]
        for wrong in (lambda self, count: torch.zeros(count, 6, 8), fails):
            monkeypatch.setattr(_Replay, "many", wrong)
            torch.manual_seed(5)
            recording = Recording(plain)
            found = list(recording.draws(20))
            assert recording.stacked is False
            torch.testing.assert_close(found, expected)


def fails(self, count: int) -> Tensor:
    raise RuntimeError("vmap: not implemented")


def test_samples_are_taken_in_chunks(monkeypatch) -> None:
    sizes, bytes_each, many = [], [], _Replay.many

    def counted(self: _Replay, count: int) -> Tensor:
        sizes.append(count)
        bytes_each.append(self.bytes)
        return many(self, count)

    monkeypatch.setattr(_Replay, "many", counted)
    with torch.inference_mode():
        torch.manual_seed(5)
        whole = list(Recording(plain).draws(30))
        assert bytes_each[0] >= 2 * X.nbytes  # what is dropped, and the product
        monkeypatch.setitem(STACK_BYTES, "cpu", 7 * bytes_each[0])
        torch.manual_seed(5)
        parts = list(Recording(plain).draws(30))
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-6)
    assert sizes == [2, 28, 2, 7, 7, 7, 7]


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
