"""Adversarial training: a generator against a discriminator."""

from zoo.tasks.gan.task import GAN

__all__ = ["GAN"]
