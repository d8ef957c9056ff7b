from __future__ import annotations

from pathlib import Path

import pytest
import torch
from matplotlib import image

from zoo.evaluation.corruptions import KINDS, STRENGTHS, corrupt, draw_corrupted


def pictures(side: int = 28, count: int = 40) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, 3, side, side), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", [8, 28])
def test_each_step_takes_images_farther_from_what_they_were(kind: str, side: int) -> None:
    images = pictures(side)
    before = images.clone()
    smooth = torch.nn.functional.avg_pool2d(images.float(), 3, 1, 1).byte()
    distances = []
    for strength in STRENGTHS:
        worse = corrupt(smooth, kind, strength)
        assert worse.shape == smooth.shape
        assert worse.dtype == torch.uint8
        assert torch.equal(worse, corrupt(smooth, kind, strength))
        distances.append(float((worse.float() - smooth.float()).abs().mean()))
    assert distances[0] > 0
    if kind != "shift":  # a random picture is as far from itself at any distance
        assert distances == sorted(distances)
    assert torch.equal(corrupt(images, kind, 0), before)
    assert torch.equal(images, before)


def test_what_each_kind_does() -> None:
    gray = torch.full((200, 1, 28, 28), 128, dtype=torch.uint8)
    noisy = corrupt(gray, "noise", 2).float() / 255
    assert float(noisy.std()) == pytest.approx(0.08, rel=0.03)
    assert not torch.equal(corrupt(gray, "noise", 2, seed=1), corrupt(gray, "noise", 2))
    assert torch.equal(corrupt(gray, "blur", 5), gray)
    assert torch.equal(corrupt(gray, "contrast", 5), gray)
    flat = corrupt(pictures(), "contrast", 5).float()
    assert float(flat.std()) == pytest.approx(0.25 * float(pictures().float().std()), rel=0.05)
    dot = torch.zeros(400, 1, 28, 28, dtype=torch.uint8)
    dot[:, :, 14, 14] = 255
    places = corrupt(dot, "shift", 3).nonzero()[:, 2:]
    assert len(places) == 400
    assert {tuple(place) for place in places.tolist()} == {
        (11, 14),
        (17, 14),
        (14, 11),
        (14, 17),
    }


def test_a_picture_of_all_kinds(tmp_path: Path) -> None:
    scores = {"accuracy": [0.9] * 6, "before": [0.1] * 6, "calibrated": [0.05] * 6}
    draw_corrupted(dict.fromkeys(KINDS, scores), tmp_path / "corruption.png", "title")
    assert image.imread(tmp_path / "corruption.png")[..., :3].std() > 0.05
