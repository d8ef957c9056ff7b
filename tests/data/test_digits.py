from __future__ import annotations

import pytest
import torch

from zoo.data import Digits, FashionMNIST
from zoo.errors import UserError


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


def test_folds_hold_each_training_image_out_once() -> None:
    whole = Digits()
    whole.setup("fit")
    everything = torch.cat([whole._train[0], whole._validation[0]])
    held_out = []
    for fold in range(5):
        data = Digits(folds=5, fold=fold)
        data.setup("fit")
        held_out.append(data._validation[0])
        assert len(data._train[0]) + len(held_out[-1]) == len(everything)
        assert abs(len(held_out[-1]) - len(everything) / 5) < 1
    rows = torch.cat(held_out).flatten(1).unique(dim=0, return_counts=True)
    expected = everything.flatten(1).unique(dim=0, return_counts=True)
    assert all(torch.equal(one, other) for one, other in zip(rows, expected, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folds": 1, "fold": 0}, "data.folds is 1: give at least 2"),
        ({"fold": 0}, "data.folds is None"),
        ({"folds": 5}, "data.fold is None: give a number from 0 to 4"),
        ({"folds": 5, "fold": 5}, "data.fold is 5: give a number from 0 to 4"),
    ],
)
def test_a_fold_that_cannot_be_is_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Digits(**options)


def test_the_training_sample_is_the_same_each_time_and_clean() -> None:
    data = Digits()
    data.setup("fit")
    one, other = (torch.cat([x for x, _ in data.training_sample()]) for _ in range(2))
    assert torch.equal(one, other)
    assert torch.equal(one, data._train[0])  # fewer than 5,000: all of them


@pytest.mark.parametrize("size", [8, 28])
def test_the_recorded_statistics_are_those_of_the_training_images(size: int) -> None:
    data = Digits(image_size=size)
    data.setup("fit")
    images, _ = next(iter(data._batches(data._train)))
    assert images.dtype == torch.uint8
    everything = data.normalize(data._train[0])
    assert everything.shape[1:] == (1, size, size)
    assert everything.mean().abs() < 0.01
    # Interpolation smooths: a resized digit has less contrast than the one it was made from.
    assert everything.std() == pytest.approx(1.0 if size == 8 else 0.86, abs=0.01)


def test_digits_are_never_mirrored() -> None:
    assert Digits().flip is False


def test_classes_are_drawn_as_their_sampling_weights_say() -> None:
    weights = [2.0, 0.0, *[1.0] * 8]
    data = Digits(sampling_weights=weights, drop_last=False)
    data.setup("fit")
    drawn = torch.cat([labels for _, labels in data.train_dataloader()])
    held = torch.bincount(data._train[1])
    expected = torch.tensor(weights) * held
    expected *= len(drawn) / expected.sum()
    assert len(drawn) == 1257
    assert (torch.bincount(drawn, minlength=10) - expected).abs().max() < 15
    # What is measured is measured on all images as they are.
    validated = torch.cat([labels for _, labels in data.val_dataloader()])
    assert torch.equal(validated, data._validation[1])


def test_a_stand_in_has_no_sampling_weights_of_another_sets_classes() -> None:
    data = FashionMNIST(sampling_weights=[2.0, *[1.0] * 9], fallback="digits")
    assert data.make_stand_in().sampling_weights is None


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ([1.0, 2.0], "data.sampling_weights has 2 numbers for 10 classes"),
        ([-1.0, *[1.0] * 9], "numbers from 0 up"),
        ([float("nan"), *[1.0] * 9], "numbers from 0 up"),
        ([float("inf"), *[1.0] * 9], "numbers from 0 up"),
        ([0.0] * 10, "not 0 for every class"),
    ],
)
def test_sampling_weights_that_cannot_be_are_reported(weights: list[float], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Digits(sampling_weights=weights)
