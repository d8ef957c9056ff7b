"""A class-conditional GAN: BatchNorm in the generator, spectral norm in the discriminator.

Miyato et al., "Spectral Normalization for Generative Adversarial Networks", ICLR 2018: residual
networks (section B, tables 3 and 4), where the discriminator's Lipschitz constant is bounded layer
by layer. BatchNorm in the discriminator would tie the scores of a batch's images together; in the
generator it is what makes it train (Radford et al., ICLR 2016, section 3). No dropout in either:
the noise is the input.

Classes enter by the generator's BatchNorm, whose scale and shift are the class's own (Dumoulin et
al., ICLR 2017, section 2.2), and by the discriminator's projection (Miyato & Koyama, ICLR 2018,
section 3): the inner product of the features with an embedding of the class.

Shapes: B batch, Z latent, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from zoo.networks.base import Network, check_sizes
from zoo.networks.fast import PooledConv2d
from zoo.networks.initializers import init_xavier
from zoo.networks.layers import in_own_precision


class ClassBatchNorm(nn.Module):
    """BatchNorm whose scale and shift belong to the class.

    With a ``latent_size`` the latents move both (self-modulation: Chen et al., "On Self Modulation
    for Generative Adversarial Networks", ICLR 2019, section 2), here by a linear function where
    theirs has a hidden layer.
    """

    def __init__(self, channels: int, num_classes: int, latent_size: int = 0) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels, affine=False)
        self.affine = nn.Embedding(num_classes, 2 * channels)
        self.modulation = nn.Linear(latent_size, 2 * channels) if latent_size else None
        self.reset_affine()

    def reset_affine(self) -> None:
        """Makes all classes alike, and lets latents move a sample's scale by 0.16 or so."""
        with torch.no_grad():
            scale, shift = self.affine.weight.chunk(2, dim=1)
            scale.fill_(1)
            shift.zero_()
        if self.modulation is not None:
            nn.init.normal_(self.modulation.weight, std=0.16 / self.modulation.in_features**0.5)
            nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, labels: Tensor, latents: Tensor) -> Tensor:
        """Maps to maps of the same size.

        Args:
            x: (B, C, H, W).
            labels: (B,), or shares of each class (B, K), which mix their scales and shifts.
            latents: (B, Z), or (B, K · Z) of ``latents_by_class``.
        """
        affine = labels @ self.affine.weight if labels.ndim == 2 else self.affine(labels)
        if self.modulation is not None:
            affine = affine + self.modulation(latents)
        # In x's precision: under autocast the table's would make all that follows single precision.
        x = self.norm(x)
        scale, shift = affine[:, :, None, None].to(x.dtype).chunk(2, dim=1)
        return torch.addcmul(shift, x, scale)


class GeneratorBlock(nn.Module):
    """BN, ReLU, convolution, BN, ReLU, upsampling, convolution, added to the upsampled input.

    Miyato et al. upsample before the first convolution; here it follows, and the convolution works
    on a quarter of the positions. A block that does not ``double`` the resolution has neither
    upsampling nor, in its shortcut, a convolution: it gives as many channels as it is given.
    """

    def __init__(
        self, in_channels: int, channels: int, num_classes: int, latent_size: int, double: bool
    ) -> None:
        super().__init__()
        self.norm1 = ClassBatchNorm(in_channels, num_classes, latent_size)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.norm2 = ClassBatchNorm(channels, num_classes, latent_size)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.shortcut = nn.Conv2d(in_channels, channels, 1) if double else None

    def forward(self, x: Tensor, labels: Tensor, latents: Tensor) -> Tensor:
        """(B, in_channels, H, W) → (B, channels, 2 H, 2 W), or the same size."""
        out = self.conv1(self.norm1(x, labels, latents).relu())
        out = self.norm2(out, labels, latents).relu()
        if self.shortcut is None:
            return self.conv2(out) + x
        out = self.conv2(F.interpolate(out, scale_factor=2.0))
        # A 1 × 1 convolution and nearest upsampling commute: the small map is the cheaper one.
        return out + F.interpolate(self.shortcut(x), scale_factor=2.0)


def latents_by_class(latents: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Places latents (B, Z) where their class is, and zeros where the others are: (B, K · Z).

    Args:
        latents: normal noise.
        labels: (B,), or shares of each class (B, K).
        num_classes: K.
    """
    shares = labels if labels.ndim == 2 else F.one_hot(labels, num_classes)
    return (shares.to(latents.dtype)[:, :, None] * latents[:, None]).flatten(1)


class Generator(Network):
    """Latents and labels to images in (-1, 1).

    Args:
        num_classes: how many.
        in_channels: of the images: 1 for grayscale, 3 for color.
        image_size: pixels a side: a small number times a power of two.
        latent_size: of the noise.
        width: channels of the last block; each block before has twice as many.
        blocks: how often the resolution is doubled.
        self_modulation: the latents enter every block's BatchNorm too (Chen et al. 2019; see
            ``ClassBatchNorm``).
        class_latents: wherever latents enter, they do so by a matrix of their class's own, and
            what varies within a class is not what varies within another: a mixture of Gaussians
            whose parameters are learned (Gurumurthy et al., "DeLiGAN", CVPR 2017, section 4), here
            one for each class, with all covariances. In the beginning the matrices are alike.
        coarse_blocks: residual blocks at the first resolution, before it is doubled, where an
            image's shape is laid out and a convolution is cheapest (as the blocks of BigGAN-deep
            that keep the resolution: Brock et al., ICLR 2019, appendix B).

    Raises:
        ValueError: a size below one, a number of ``coarse_blocks`` below 0, or an image that cannot
            be halved so often.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 1,
        image_size: int = 28,
        latent_size: int = 64,
        width: int = 64,
        blocks: int = 2,
        self_modulation: bool = False,
        class_latents: bool = False,
        coarse_blocks: int = 0,
    ) -> None:
        super().__init__()
        check_classes(num_classes)
        check_sizes(in_channels=in_channels, latent_size=latent_size, width=width, blocks=blocks)
        if coarse_blocks < 0:
            raise ValueError(f"coarse_blocks is {coarse_blocks}: it cannot be negative")
        if image_size % 2**blocks:
            raise ValueError(f"image_size is {image_size}: give a multiple of {2**blocks}")
        self.num_classes, self.latent_size = num_classes, latent_size
        self.class_latents = class_latents
        self.side = image_size // 2**blocks
        widths = [width * 2 ** (blocks - 1 - index) for index in range(blocks)]
        self.first = nn.Linear(latent_size, widths[0] * self.side**2)
        shapes = [(widths[0], widths[0], False)] * coarse_blocks  # channels before, after, double
        shapes += [(old, new, True) for old, new in zip([widths[0], *widths], widths, strict=False)]
        modulating = latent_size if self_modulation else 0
        self.blocks = nn.ModuleList(
            GeneratorBlock(before, after, num_classes, modulating, double)
            for before, after, double in shapes
        )
        self.norm = nn.BatchNorm2d(width)
        self.last = nn.Conv2d(width, in_channels, 3, padding=1)
        init_xavier(self)
        for module in self.modules():
            if isinstance(module, ClassBatchNorm):
                module.reset_affine()  # Xavier's modulation would begin at 0.7 and more
        if class_latents:
            # Only now: a class's matrix sees as many latents as one for all of them would.
            for layer in self._entries():
                layer.weight = nn.Parameter(layer.weight.detach().repeat(1, num_classes))
                layer.in_features *= num_classes

    def _entries(self) -> list[nn.Linear]:
        """The layers that latents enter by."""
        norms = [module for module in self.modules() if isinstance(module, ClassBatchNorm)]
        return [self.first, *(norm.modulation for norm in norms if norm.modulation is not None)]

    def fallback_parameters(self) -> set[str]:
        """Matrices that an optimizer for matrices leaves to its fallback, as patterns of names.

        They are what latents and classes enter by, and what the pixels leave by.
        """
        return {"first.weight", "*.affine.weight", "*.modulation.weight", "last.weight"}

    def forward(self, latents: Tensor, labels: Tensor) -> Tensor:
        """Latents (B, Z) → images (B, C, H, W) in (-1, 1).

        Args:
            latents: normal noise.
            labels: int64 (B,), or shares of each class (B, K), which mix their scales and shifts.
        """
        if self.class_latents:
            latents = latents_by_class(latents, labels, self.num_classes)
        x = self.first(latents).view(latents.shape[0], -1, self.side, self.side)
        for block in self.blocks:
            x = block(x, labels, latents)
        x = self.norm(x).relu()
        # bfloat16 moves a pixel by up to 0.4 of a gray level: texture to a discriminator.
        return in_own_precision(self.last, x).tanh()


class DiscriminatorBlock(nn.Module):
    """ReLU, convolution, ReLU, convolution, average pooling, added to the pooled input."""

    def __init__(self, in_channels: int, channels: int, first: bool, halve: bool) -> None:
        super().__init__()
        self.first, self.halve = first, halve
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.conv2 = (
            PooledConv2d(channels, channels)
            if halve
            else nn.Conv2d(channels, channels, 3, padding=1)
        )
        self.shortcut = nn.Conv2d(in_channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) → (B, channels, H / 2, W / 2), or the same size."""
        out = x if self.first else x.relu()  # the first block sees the image itself
        out = self.conv2(self.conv1(out).relu())
        return out + self.shortcut(F.avg_pool2d(x, 2) if self.halve else x)


class Discriminator(Network):
    """Images and labels to one score: more is more real.

    Args:
        num_classes: how many.
        in_channels: of the images: 1 for grayscale, 3 for color.
        width: channels of the first block; each block that halves the resolution doubles them.
        blocks: how often the resolution is halved; one more block follows that does not.
        input_scale: multiplies the images. Spectral norm bounds how fast each layer's output can
            change (Miyato et al. 2018, section 2.1), and with it how small a difference between
            images the score can show: fine texture needs more than 1. A factor anywhere else would
            not keep the norms at 1.
        feature_size: channels of the last block, of which the score is a linear function; as many
            as the block before has (Miyato et al. 2018, table 3) where none is given.

    Raises:
        ValueError: a size below one, or an ``input_scale`` that is not positive.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 1,
        width: int = 64,
        blocks: int = 2,
        input_scale: float = 1.0,
        feature_size: int | None = None,
    ) -> None:
        super().__init__()
        if feature_size is None:
            feature_size = width * 2 ** (blocks - 1)
        check_classes(num_classes)
        check_sizes(in_channels=in_channels, width=width, blocks=blocks, feature_size=feature_size)
        if input_scale <= 0:
            raise ValueError(f"input_scale is {input_scale}: it must be positive")
        self.num_classes, self.input_scale = num_classes, input_scale
        widths = [in_channels, *(width * 2**index for index in range(blocks)), feature_size]
        self.blocks = nn.Sequential(
            *(
                DiscriminatorBlock(before, after, index == 0, index < blocks)
                for index, (before, after) in enumerate(pairwise(widths))
            )
        )
        self.linear = nn.Linear(feature_size, 1)
        self.embed = nn.Embedding(num_classes, feature_size)
        init_xavier(self)
        # After initializing: the power iteration starts from the weights as they are now.
        for layer in list(self.modules()):
            if isinstance(layer, nn.Conv2d | nn.Linear | nn.Embedding):
                spectral_norm(layer)

    def fallback_parameters(self) -> set[str]:
        """The matrix that an optimizer for matrices leaves to its fallback: the classes' table."""
        return {"embed.*"}

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] and int64 labels (B,) → scores (B,).

        Labels (B, M) ask of each image what it is as one of M classes: (B, M).
        """
        features = self.blocks(images * self.input_scale).relu().sum((2, 3))
        score = self.linear(features)[:, 0]
        if labels.ndim == 2:
            score, features = score[:, None], features[:, None]
        return score + (self.embed(labels) * features).sum(-1)


def check_classes(num_classes: int) -> None:
    """Raises ValueError for fewer than one class."""
    if num_classes < 1:
        raise ValueError(f"num_classes is {num_classes}: a conditional GAN needs at least 1")


class SNGAN(Network):
    """A generator and its discriminator.

    Args:
        num_classes, in_channels, image_size: of the images.
        latent_size, generator_width, self_modulation, class_latents, coarse_blocks: of
            ``Generator``.
        discriminator_width: of ``Discriminator``.
        blocks: how often the resolution is doubled, and halved.
        input_scale, feature_size: of ``Discriminator``.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 1,
        image_size: int = 28,
        latent_size: int = 64,
        generator_width: int = 64,
        discriminator_width: int = 64,
        blocks: int = 2,
        input_scale: float = 1.0,
        feature_size: int | None = None,
        self_modulation: bool = False,
        class_latents: bool = False,
        coarse_blocks: int = 0,
    ) -> None:
        super().__init__()
        self.num_classes, self.latent_size = num_classes, latent_size
        self.generator = Generator(
            num_classes,
            in_channels,
            image_size,
            latent_size,
            generator_width,
            blocks,
            self_modulation,
            class_latents,
            coarse_blocks,
        )
        self.discriminator = Discriminator(
            num_classes, in_channels, discriminator_width, blocks, input_scale, feature_size
        )

    def forward(self, latents: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """(B, Z) and int64 labels (B,) → images (B, C, H, W) in (-1, 1), and their scores (B,)."""
        images = self.generator(latents, labels)
        return images, self.discriminator(images, labels)
