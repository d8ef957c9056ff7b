"""One image file as pixels: the same for training, evaluation and prediction on new files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms import v2

from zoo.core.text import first_line, shown
from zoo.errors import UserError

# PIL opens many more, some of them by other programs.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP")
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")
MODES = {1: "L", 3: "RGB"}  # PIL's, by channels
Color = str  # a name of CSS's ("white"), or "#rrggbb"


def decode(path: Path | bytes, channels: int, background: Color = "white") -> Tensor:
    """Decodes an image file upright, into as many channels as asked for.

    Reads JPEG, PNG, BMP, GIF, TIFF and WebP, by content and not by suffix; of several frames, the
    first. Grayscale images become three equal channels, and color images become grayscale (ITU-R
    601 luma). Grayscale images of more than 8 bits a pixel are scaled so that their darkest pixel
    becomes 0 and their brightest 255 (an image of one value only becomes black). Color of 16 bits a
    channel keeps its upper 8, which is all that PIL reads. Transparent pixels show the background.

    Args:
        path: the file, or its content.
        channels: 1 for grayscale, 3 for RGB.
        background: what transparent images are laid on.

    Returns:
        uint8 (channels, H, W).

    Raises:
        UserError: the file is empty, cut off or not an image, or an argument is out of range.
    """
    color = _checked(channels, background)
    try:
        with open_image(path) as opened:
            return _pixels(opened, channels, color)
    except Exception as error:  # PIL has many for a broken file, a decompression bomb among them
        raise UserError(f"{_name(path)} {why_unreadable(error)}") from None


def pixels(image: Image.Image, channels: int, background: Color = "white") -> Tensor:
    """Does with an image that PIL has opened what ``decode`` does with a file.

    Args:
        image: of any mode.
        channels: 1 for grayscale, 3 for RGB.
        background: what transparent images are laid on.

    Returns:
        uint8 (channels, H, W).

    Raises:
        UserError: an argument is out of range.
    """
    return _pixels(image, channels, _checked(channels, background))


def _checked(channels: int, background: Color) -> tuple[int, int, int]:
    if channels not in MODES:
        raise UserError(f"an image cannot be read with {channels} channels: give 1 or 3")
    return rgb(background)


def _pixels(opened: Image.Image, channels: int, color: tuple[int, ...]) -> Tensor:
    image = _in_8_bits(ImageOps.exif_transpose(opened))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, color), image)
    return v2.functional.pil_to_tensor(image.convert(MODES[channels]))


def rgb(color: Color) -> tuple[int, int, int]:
    """Converts a color to red, green and blue, from 0 to 255.

    Raises:
        UserError: it is not a color.
    """
    try:
        red, green, blue, *_ = ImageColor.getrgb(color)
    except (ValueError, AttributeError):
        raise UserError(
            f"background is {shown(color)}, which is not a color: give a name such as white, or "
            "#rrggbb"
        ) from None
    return red, green, blue


def open_image(path: Path | bytes) -> Image.Image:
    """Opens a file, or its content, without decoding it.

    Raises:
        EOFError: there is not one byte in it.
        Exception: PIL's or the system's, for ``why_unreadable``.
    """
    if not (len(path) if isinstance(path, bytes) else path.stat().st_size):
        raise EOFError
    return Image.open(io.BytesIO(path) if isinstance(path, bytes) else path, formats=FORMATS)


def why_unreadable(error: Exception) -> str:
    """Describes why a file could not be decoded, to follow its name in a sentence."""
    if isinstance(error, EOFError) and not str(error):
        return "is empty (0 bytes)"
    reason = first_line(error)
    if isinstance(error, UnidentifiedImageError):
        reason = f"it is none of {', '.join(FORMATS)}"
    elif isinstance(error, OSError) and error.strerror:
        reason = error.strerror
    return f"cannot be read as an image: {reason}"


def is_gray(image: Image.Image) -> bool:
    """Returns whether a file stores gray values, or indices into a palette of nothing but grays."""
    if image.mode in ("P", "PA"):
        palette = np.array(image.getpalette("RGB")).reshape(-1, 3)
        return bool((palette == palette[:, :1]).all())
    return image.mode[0] in "1LIF" and image.mode != "LAB"


def _in_8_bits(image: Image.Image) -> Image.Image:
    """Scales a gray image of more than 8 bits a pixel by its own range; others are left alone."""
    if image.mode[0] not in "IF":  # I, I;16, I;16B and F
        return image
    values = np.asarray(image).astype(np.float64)
    low, high = values.min(), values.max()
    if not np.isfinite(high - low):
        raise ValueError("it holds values that are not finite")
    scaled = (values - low) * (255 / (high - low)) if high > low else np.zeros_like(values)
    gray = Image.fromarray(scaled.round().astype(np.uint8))
    transparent: Any = image.info.get("transparency")  # a gray value, of all the bits
    if transparent is None:
        return gray
    opaque = Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))
    return Image.merge("LA", [gray, opaque])


def _name(path: Path | bytes) -> str:
    return "the image" if isinstance(path, bytes) else str(path)
