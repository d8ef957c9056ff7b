"""What a GAN's networks minimize, as functions of the discriminator's scores.

A score is one number an image, and more is more real. Scores of real and of generated images are
(B,) each, in float32; every loss is a mean over the batch.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def hinge_discriminator(real: Tensor, generated: Tensor) -> Tensor:
    """Asks for a score above 1 for real images and below -1 for generated ones.

    Source: Lim & Ye, "Geometric GAN", 2017; in this form Miyato et al., ICLR 2018, equations 16
    and 17.
    """
    return F.relu(1 + generated).mean() + F.relu(1 - real).mean()


def hinge_generator(generated: Tensor) -> Tensor:
    """Raises the scores of generated images.

    Source: as ``hinge_discriminator``.
    """
    return -generated.mean()


def hinge_mismatch(mismatched: Tensor) -> Tensor:
    """Asks for a score below -1 for real images under a class that is not theirs.

    Source: Reed et al., "Generative Adversarial Text to Image Synthesis", ICML 2016, section 4.2,
    with the hinge in place of the cross-entropy.
    """
    return F.relu(1 + mismatched).mean()
