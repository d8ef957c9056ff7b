from __future__ import annotations

import pytest
import torch

from zoo.data import Digits


def test_the_split_is_fixed_and_disjoint() -> None:
    data = Digits()
    data.setup("fit")
    data.setup("test")
    sizes = [len(part[0]) for part in (data._train, data._validation, data._test)]
    assert sizes == [1257, 180, 360]
    again = Digits()
    torch.manual_seed(99)
    again.setup("fit")
    assert torch.equal(data._validation[0], again._validation[0])


@pytest.mark.parametrize("size", [8, 28])
def test_the_recorded_statistics_are_those_of_the_training_images(size: int) -> None:
    data = Digits(image_size=size)
    data.setup("fit")
    images, _ = next(iter(data._batches(data._train)))
    assert images.dtype == torch.uint8
    everything = data.normalise(data._train[0])
    assert everything.shape[1:] == (1, size, size)
    assert everything.mean().abs() < 0.01
    # Interpolation smooths: a resized digit has less contrast than the one it was made from.
    assert everything.std() == pytest.approx(1.0 if size == 8 else 0.86, abs=0.01)


def test_digits_are_never_mirrored() -> None:
    assert Digits().flip is False
