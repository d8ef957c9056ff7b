"""A decoded image as a network takes it: resized, cropped and normalized as in evaluation."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from zoo.core.text import shown
from zoo.data.decode import decode, pixels
from zoo.data.normalization import Normalization
from zoo.errors import UserError

Picture = str | os.PathLike[str] | Image.Image | np.ndarray[Any, Any] | Tensor


class Transform:
    """Resizes, crops and normalizes as the validation images of a checkpoint were.

    Args:
        data: what the checkpoint was trained on, its ``data_info``: ``mean``, ``std``,
            ``input_shape`` (C, H, W), and where they are not the usual ones ``crop_pct``, the part
            of the shorter side that is seen (1), and ``interpolation`` (``bilinear``).

    Raises:
        UserError: it does not say how images are normalized.
    """

    def __init__(self, data: Mapping[str, Any]) -> None:
        missing = [key for key in ("mean", "std", "input_shape") if key not in data]
        if missing:
            raise UserError(
                f"how images are normalized is not known: data_info has no {', '.join(missing)}; "
                "give model.data_info mean, std and input_shape"
            )
        self.channels, *size = data["input_shape"]
        self._crop = evaluation_crop(
            size, data.get("crop_pct", 1.0), data.get("interpolation", "bilinear")
        )
        self._normalize = Normalization(data["mean"], data["std"])

    def __call__(self, image: Tensor) -> Tensor:
        """A decoded image, uint8 (C, H, W) → float32 (C, h, w), of zero mean and unit variance."""
        return self._normalize(self.crop(image))

    def crop(self, image: Tensor) -> Tensor:
        """A decoded image, uint8 (C, H, W) → uint8 (C, h, w): small enough to hand to a process."""
        if image.dtype != torch.uint8 or image.ndim != 3 or len(image) != self.channels:
            raise UserError(
                f"expected a decoded image, uint8 ({self.channels}, H, W), and not "
                f"{str(image.dtype).removeprefix('torch.')} {list(image.shape)}"
            )
        return self._crop(image)

    def normalize(self, images: Tensor) -> Tensor:
        """Cropped images, uint8 (…, C, h, w) → float32."""
        return self._normalize(images)


def evaluation_crop(
    size: int | list[int], crop_pct: float, interpolation: str = "bilinear"
) -> v2.Transform:
    """Crops the center of an image of any size, uint8 (C, H, W) in and out.

    Args:
        size: height and width that are seen, or one number for both.
        crop_pct: the part of the shorter side that is seen, timm's word.
        interpolation: ``bilinear`` or another of PIL's names.
    """
    shorter = min(size) if isinstance(size, list) else size
    return v2.Compose(
        [
            v2.Resize(
                round(shorter / crop_pct),
                interpolation=v2.InterpolationMode(interpolation),
                antialias=True,
            ),
            v2.CenterCrop(size),
        ]
    )


def to_pixels(image: Picture, channels: int, background: str = "white") -> Tensor:
    """Decodes an image of any kind.

    Args:
        image: a file's path, PIL's image, an array uint8 (H, W) or (H, W, C), or a tensor uint8
            (C, H, W).
        channels: 1 for grayscale, 3 for RGB.
        background: what transparent images are laid on.

    Returns:
        uint8 (channels, H, W).

    Raises:
        UserError: it cannot be read, or is none of these.
    """
    if isinstance(image, str | os.PathLike):
        return decode(Path(image), channels, background)
    if isinstance(image, Tensor):
        if image.dtype != torch.uint8 or image.ndim != 3:
            raise UserError(
                f"a tensor is taken for a decoded image, uint8 (C, H, W), and this is "
                f"{str(image.dtype).removeprefix('torch.')} {list(image.shape)}: give normalized "
                "images to the model itself"
            )
        image = image.permute(1, 2, 0).cpu().numpy()
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3):
            raise UserError(
                f"an array is taken for uint8 (H, W) or (H, W, C), and this is {image.dtype} "
                f"{list(image.shape)}"
            )
        image = Image.fromarray(image[:, :, 0] if image.shape[2:] == (1,) else image)
    if not isinstance(image, Image.Image):
        raise UserError(
            f"{shown(image)} is not an image: give a path, PIL's image, array or tensor"
        )
    return pixels(image, channels, background)
