"""Crops as arithmetic are torchvision's crops."""

from __future__ import annotations

import pytest
import torch

from zoo.data.resize import Crop
from zoo.data.transform import evaluation_crop
from zoo.errors import UserError

# Elsewhere torch resizes in floating point, which rounds otherwise.
FIXED_POINT = any(name in torch.backends.cpu.get_cpu_capability() for name in ("AVX2", "AVX512"))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("kept", "crop_pct"), [([28, 28], 1.0), ([64, 64], 0.875), ([33, 33], 0.9), ([24, 31], 0.95)]
)
@torch.no_grad()
def test_images_of_any_size_are_cropped_to_the_bit(
    kept: list[int], crop_pct: float, interpolation: str
) -> None:
    generator = torch.Generator().manual_seed(0)
    peer, own = (make(kept, crop_pct, interpolation) for make in (evaluation_crop, Crop))
    sizes = [tuple(kept), (1, 1), (3, 40), (73, 73), (200, 31), (127, 300), (25, 26), (46, 99)]
    for height, width in sizes:
        images = torch.randint(
            0, 256, (2, 3, height, width), generator=generator, dtype=torch.uint8
        )
        images[1] = (images[1] > 127) * 255  # where bicubic overshoots
        expected = torch.stack([peer(image) for image in images]).double()
        torch.testing.assert_close(own(images), expected, atol=1 - int(FIXED_POINT), rtol=0)


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(UserError, match="resized by lanczos, which no exported file does"):
        Crop([8, 8], interpolation="lanczos")
