from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from zoo.data.augment import cutout, erase, move, shift_and_flip


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(batch: int = 64, channels: int = 3, size: int = 9) -> torch.Tensor:
    shape = (batch, channels, size, size)
    return torch.randint(1, 256, shape, generator=generator(5)).to(torch.uint8)


def test_every_image_is_a_shift_and_perhaps_a_mirror_of_itself() -> None:
    """Against the plain way: each result is one of the 2 · 5 · 5 crops of its padded image."""
    before = images()
    after = shift_and_flip(before, 2, True, generator())
    assert after.shape == before.shape
    assert after.dtype == before.dtype
    chosen = set()
    for one, result in zip(before, after, strict=True):
        matches = []
        for flip in (False, True):
            padded = F.pad(one.flip(-1) if flip else one, (2, 2, 2, 2))
            for row in range(5):
                for column in range(5):
                    if torch.equal(padded[:, row : row + 9, column : column + 9], result):
                        matches.append((flip, row, column))
        assert len(matches) == 1
        chosen.add(matches[0])
    assert len(chosen) > 20  # each image has a draw of its own


def test_each_image_moves_by_its_own_offsets_and_its_gradient_with_it() -> None:
    before = torch.randn(5, 2, 6, 7, dtype=torch.float64, generator=generator())
    offsets = torch.tensor([[1, -2, 0, 3, 9], [0, 2, -3, 1, 0]])
    after = move(before, offsets, fill=-1.0)
    for one, result, (down, right) in zip(before, after, offsets.T.tolist(), strict=True):
        for row in range(6):
            for column in range(7):
                inside = 0 <= row - down < 6 and 0 <= column - right < 7
                expected = one[:, row - down, column - right] if inside else -torch.ones(2)
                assert torch.equal(result[:, row, column], expected.double())
    assert torch.autograd.gradcheck(lambda x: move(x, offsets), before.requires_grad_())


def test_half_of_the_images_are_mirrored() -> None:
    before = images(2000, 1, 5)
    after = shift_and_flip(before, 0, True, generator())
    mirrored = (after == before.flip(-1)).all(dim=(1, 2, 3))
    untouched = (after == before).all(dim=(1, 2, 3))
    assert (mirrored | untouched).all()
    assert 0.45 < mirrored.float().mean().item() < 0.55


def test_cutout_blanks_one_square_with_its_center_in_the_image() -> None:
    before = images(500, 2, 9)
    after = cutout(before, 4, 1.0, generator())
    blank = after == 0
    assert torch.equal(blank[:, 0], blank[:, 1])
    assert torch.equal(after[~blank], before[~blank])
    rows, columns = blank[:, 0].any(2).sum(1), blank[:, 0].any(1).sum(1)
    assert torch.equal(blank[:, 0].sum((1, 2)), rows * columns)  # a rectangle, up to the border
    assert rows.max() == columns.max() == 4
    assert rows.min() >= 2  # the center is inside, so that at most half is not
    assert blank[:, 0].float().mean(0).min() > 0  # no pixel is safe


def test_cutout_happens_as_often_as_it_says() -> None:
    before = images(2000, 1, 7)
    after = cutout(before, 3, 0.3, generator())
    share = (after != before).flatten(1).any(1).float().mean().item()
    assert share == pytest.approx(0.3, abs=0.04)


def test_nothing_to_do_does_nothing() -> None:
    before = images()
    assert shift_and_flip(before, 0, False) is before
    assert cutout(before, 0) is before
    assert cutout(before, 3, 0.0) is before


def test_the_same_generator_gives_the_same_images() -> None:
    before = images()
    assert torch.equal(
        shift_and_flip(before, 2, True, generator(1)), shift_and_flip(before, 2, True, generator(1))
    )


def test_erasing_puts_noise_into_a_rectangle_inside_the_image() -> None:
    before = torch.zeros(3000, 1, 28, 28, dtype=torch.uint8)
    after = erase(before, 0.5, generator())
    assert after.dtype == torch.uint8
    touched = (after != 0).flatten(1).any(1)
    assert touched.float().mean().item() == pytest.approx(0.5, abs=0.03)
    noisy = after[touched][:, 0]
    rows, columns = (noisy != 0).any(2), (noisy != 0).any(1)
    areas = (rows.sum(1) * columns.sum(1)).float() / 28**2
    # Noise is sometimes 0 itself, and sizes are rounded: a little slack at both ends.
    assert areas.min() > 0.01
    assert areas.max() < 0.37
    assert areas.mean().item() == pytest.approx(0.175, abs=0.02)
    ratios = rows.sum(1) / columns.sum(1)
    assert ratios.min() > 0.2
    assert ratios.max() < 5
    values = noisy[noisy != 0].float()
    assert values.mean().item() == pytest.approx(128, abs=1)
    assert (noisy != 0).any(0).all()  # no pixel is safe


def test_what_is_not_erased_stays() -> None:
    before = images(200, 3, 16)
    after = erase(before, 1.0, generator())
    changed = (after != before).any(1)
    # Of each image at least two thirds are as they were.
    assert changed.flatten(1).float().mean(1).max() < 0.4
    assert erase(before, 0.0) is before
