from __future__ import annotations

import pytest
import torch

from zoo.diagnostics.moments import PooledMoments


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_pooled_moments_equal_those_of_one_huge_batch(layout: torch.memory_format) -> None:
    moments = PooledMoments()
    parts = [torch.randn(n, 3, 4, 4) * n + 100 for n in (2, 7, 31)]
    for part in parts:
        moments.update(part.contiguous(memory_format=layout))
    mean, variance = moments.reduce()
    whole = torch.cat(parts).double()
    torch.testing.assert_close(mean, whole.mean((0, 2, 3)), rtol=1e-6, atol=0)
    torch.testing.assert_close(variance, whole.var((0, 2, 3)), rtol=1e-5, atol=0)


def test_half_precision_is_gathered_in_single() -> None:
    moments = PooledMoments()
    part = torch.randn(64, 3).bfloat16()
    moments.update(part)
    mean, variance = moments.reduce(correction=0)
    torch.testing.assert_close(mean, part.double().mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(variance, part.double().var(0, correction=0), rtol=1e-5, atol=0)
