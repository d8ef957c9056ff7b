"""What a GAN's networks minimize, as functions of the discriminator's scores.

A score is one number an image, and more is more real. Scores of real and of generated images are
(B,) each, in float32; every loss is a mean over the batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Loss(NamedTuple):
    """The losses that belong together.

    ``discriminator`` and ``generator`` take the scores of real and of generated images.
    ``mismatch`` takes the scores of real images under their own class and under another one.
    ``paired`` says whether the generator's loss depends on the scores of real images.
    """

    discriminator: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor, Tensor], Tensor]
    mismatch: Callable[[Tensor, Tensor], Tensor]
    paired: bool


def hinge_discriminator(real: Tensor, generated: Tensor) -> Tensor:
    """Asks for a score above 1 for real images and below -1 for generated ones.

    Source: Lim & Ye, "Geometric GAN", 2017; in this form Miyato et al., ICLR 2018, equations 16
    and 17.
    """
    return F.relu(1 + generated).mean() + F.relu(1 - real).mean()


def hinge_generator(real: Tensor, generated: Tensor) -> Tensor:
    """Raises the scores of generated images; those of real images do not count.

    Source: as ``hinge_discriminator``.
    """
    return -generated.mean()


def hinge_mismatch(real: Tensor, mismatched: Tensor) -> Tensor:
    """Asks for a score below -1 for real images under a class that is not theirs.

    Source: Reed et al., "Generative Adversarial Text to Image Synthesis", ICML 2016, section 4.2,
    with the hinge in place of the cross-entropy.
    """
    return F.relu(1 + mismatched).mean()


def relativistic_discriminator(real: Tensor, generated: Tensor) -> Tensor:
    """Asks that each real image scores more than the generated image it is paired with.

    Source: Jolicoeur-Martineau, "The Relativistic Discriminator", ICLR 2019, section 4; Huang et
    al., "The GAN is dead; long live the GAN!" (R3GAN), NeurIPS 2024, section 2.
    """
    return F.softplus(generated - real).mean()


def relativistic_generator(real: Tensor, generated: Tensor) -> Tensor:
    """Asks that each generated image scores more than the real image it is paired with.

    Source: as ``relativistic_discriminator``.
    """
    return F.softplus(real - generated).mean()


def relativistic_mismatch(real: Tensor, mismatched: Tensor) -> Tensor:
    """Asks that each real image scores more under its own class than under another one.

    Source: Reed et al., ICML 2016, section 4.2, with the relativistic pairing in place of the
    cross-entropy.
    """
    return F.softplus(mismatched - real).mean()


LOSSES = {
    "hinge": Loss(hinge_discriminator, hinge_generator, hinge_mismatch, paired=False),
    "relativistic": Loss(
        relativistic_discriminator, relativistic_generator, relativistic_mismatch, paired=True
    ),
}


def r1_penalty(scores: Tensor, images: Tensor) -> Tensor:
    """Computes half the mean squared gradient of the scores with respect to their images.

    Source: Mescheder et al., "Which Training Methods for GANs do actually Converge?", ICML 2018,
    section 4.1.

    Args:
        scores: (B,), of real images, each a function of its own image alone.
        images: (B, C, H, W), which require a gradient.
    """
    (slope,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
    return 0.5 * slope.float().square().sum((1, 2, 3)).mean()
