from __future__ import annotations

import math

import pytest
import torch

from zoo.tasks.gan.losses import LOSSES, r1_penalty

REAL, OTHER = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 1.0])


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


@pytest.mark.parametrize(
    ("loss", "which", "expected"),
    [
        # max(0, 1 + s) of -3 and 1, and max(0, 1 - s) of 2 and 0.5
        ("hinge", "discriminator", (0 + 2) / 2 + (0 + 0.5) / 2),
        ("hinge", "generator", (3 - 1) / 2),
        ("hinge", "mismatch", (0 + 2) / 2),
        ("relativistic", "discriminator", (softplus(-5.0) + softplus(0.5)) / 2),
        ("relativistic", "generator", (softplus(5.0) + softplus(-0.5)) / 2),
        ("relativistic", "mismatch", (softplus(-5.0) + softplus(0.5)) / 2),
    ],
)
def test_each_loss_is_its_formula(loss: str, which: str, expected: float) -> None:
    assert getattr(LOSSES[loss], which)(REAL, OTHER).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("loss", list(LOSSES))
def test_only_a_paired_loss_of_the_generator_depends_on_real_scores(loss: str) -> None:
    generator = LOSSES[loss].generator
    moved = not torch.equal(generator(REAL, OTHER), generator(REAL + 1, OTHER))
    assert moved == LOSSES[loss].paired


def test_r1_is_half_the_mean_squared_slope_and_can_be_learned_from() -> None:
    weight = torch.tensor(3.0, requires_grad=True)
    images = torch.randn(4, 1, 2, 2, requires_grad=True)
    penalty = r1_penalty((weight * images).flatten(1).sum(1), images)
    assert penalty.item() == pytest.approx(0.5 * 3**2 * 4)  # each of 4 pixels has the slope 3
    penalty.backward()
    assert weight.grad.item() == pytest.approx(3 * 4)
