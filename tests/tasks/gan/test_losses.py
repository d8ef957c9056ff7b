from __future__ import annotations

import pytest
import torch

from zoo.tasks.gan.losses import hinge_discriminator, hinge_generator, hinge_mismatch

REAL, OTHER = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 1.0])


def test_each_loss_is_its_formula() -> None:
    # max(0, 1 + s) of -3 and 1, and max(0, 1 - s) of 2 and 0.5
    assert hinge_discriminator(REAL, OTHER).item() == pytest.approx((0 + 2) / 2 + (0 + 0.5) / 2)
    assert hinge_generator(OTHER).item() == pytest.approx((3 - 1) / 2)
    assert hinge_mismatch(OTHER).item() == pytest.approx((0 + 2) / 2)
