from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from zoo.data import DigitMasks
from zoo.data.digit_masks import masks_of
from zoo.errors import UserError
from zoo.networks import ConvNet, UNet
from zoo.tasks import Segmenter
from zoo.tasks.segmenter import dice_loss


def test_a_pixel_is_its_digits_where_there_is_ink() -> None:
    images = torch.tensor([[[[0, 127], [128, 255]]], [[[200, 0], [0, 0]]]], dtype=torch.uint8)
    expected = torch.tensor([[[0, 0], [4, 4]], [[10, 0], [0, 0]]])
    assert torch.equal(masks_of(images, torch.tensor([3, 9])), expected)


def test_masks_follow_the_augmented_images() -> None:
    data = DigitMasks(shift=2)
    data.setup("fit")
    images, labels = next(iter(data.train_dataloader()))
    normalized, masks = data.on_after_batch_transfer((images, labels), 0)
    assert masks.shape == (len(images), 16, 16)
    pixels = (normalized * data.std[0] + data.mean[0])[:, 0] * 255
    assert torch.equal(masks > 0, pixels.round() >= 128)
    assert all(
        set(mask.unique().tolist()) <= {0, int(label) + 1}
        for mask, label in zip(masks, labels, strict=False)
    )


def test_dice_is_that_of_the_classes_that_the_batch_has() -> None:
    masks = torch.tensor([[[0, 0], [0, 2]]])
    logits = torch.log(torch.tensor([0.7, 0.1, 0.2]))[None, :, None, None].expand(1, 3, 2, 2)
    # By hand: class 0 has 3 pixels: 2 · 2.1 / (2.8 + 3); class 2 one: 2 · 0.2 / (0.8 + 1).
    expected = 1 - (4.2 / 5.8 + 0.4 / 1.8) / 2
    assert float(dice_loss(logits, masks)) == pytest.approx(expected, abs=1e-6)
    perfect = 50.0 * F.one_hot(masks, 3).movedim(3, 1).float()
    assert float(dice_loss(perfect, masks)) == pytest.approx(0.0, abs=1e-6)


def test_a_network_without_logits_of_pixels_is_refused() -> None:
    task = Segmenter(ConvNet(num_classes=11))
    with pytest.raises(UserError, match="logits of these images' pixels are"):
        task._check_that_it_fits(torch.zeros(2, 1, 16, 16), 11)
    Segmenter(UNet(11, 1, width=8, depth=1))._check_that_it_fits(torch.zeros(2, 1, 16, 16), 11)


def test_scores_are_of_each_image() -> None:
    task = Segmenter(UNet(11, 1, width=8, depth=1)).eval()
    images, masks = torch.randn(3, 1, 8, 8), torch.randint(11, (3, 8, 8))
    scores = task.scores(images, masks)
    with torch.no_grad():
        logits = task(images)
    for n in range(3):
        expected = F.cross_entropy(logits[n : n + 1], masks[n : n + 1])
        torch.testing.assert_close(scores["loss"][n], expected)
    assert scores["accuracy"].shape == (3,)
