from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from zoo.data.decode import decode, is_gray
from zoo.errors import UserError

NOISE = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def saved(image: Image.Image, file: Path, **options: object) -> Path:
    image.save(file, **options)
    return file


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp", "gif", "jpg"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_format_gives_the_pixels_that_were_saved(
    tmp_path: Path, suffix: str, channels: int
) -> None:
    flat = np.full((16, 24, 3), (200, 40, 90), dtype=np.uint8)
    pixels = flat if suffix in ("jpg", "gif") else NOISE
    options = {"lossless": True} if suffix == "webp" else {}
    file = saved(Image.fromarray(pixels), tmp_path / f"a.{suffix}", **options)
    found = decode(file, channels)
    expected = torch.from_numpy(pixels).permute(2, 0, 1)
    if channels == 1:  # ITU-R 601
        weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
        expected = (expected * weights).sum(0, keepdim=True)
    assert found.dtype == torch.uint8
    assert found.shape == (channels, *pixels.shape[:2])
    assert (found.float() - expected).abs().max() <= (3 if suffix == "jpg" else 1)
    assert torch.equal(decode(file.read_bytes(), channels), found)


@pytest.mark.parametrize("suffix", ["gif", "tif", "webp", "png"])
def test_of_several_frames_the_first_is_read(tmp_path: Path, suffix: str) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    options = {"lossless": True} if suffix == "webp" else {}
    file = saved(
        frames[0], tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], **options
    )
    assert decode(file, 3)[:, 0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_is_scaled_by_its_own_range(tmp_path: Path, suffix: str) -> None:
    """12 bits in 16 are as bright as they are meant to be."""
    deep = np.array([[0, 1000, 2048, 4095]], dtype=np.uint16)
    expected = [0, round(1000 * 255 / 4095), round(2048 * 255 / 4095), 255]
    file = saved(Image.fromarray(deep), tmp_path / f"a.{suffix}")
    assert decode(file, 1).flatten().tolist() == expected
    assert decode(file, 3)[2].flatten().tolist() == expected
    shifted = saved(Image.fromarray(deep + 40_000), tmp_path / f"b.{suffix}")
    assert torch.equal(decode(shifted, 1), decode(file, 1))
    constant = saved(Image.fromarray(deep * 0 + 7), tmp_path / f"c.{suffix}")
    assert not decode(constant, 1).any()


def test_floating_point_is_scaled_and_nan_is_refused(tmp_path: Path) -> None:
    values = np.array([[-1.0, 0.0, 3.0]], dtype=np.float32)
    assert decode(saved(Image.fromarray(values), tmp_path / "a.tif"), 1).tolist() == [
        [[0, 64, 255]]
    ]
    values[0, 0] = np.nan
    with pytest.raises(UserError, match="values that are not finite"):
        decode(saved(Image.fromarray(values), tmp_path / "b.tif"), 1)


def transparent_images(folder: Path) -> list[Path]:
    """Each has a transparent pixel on the left whose hidden color is black, and a red one."""
    pixels = np.array([[[0, 0, 0, 0], [255, 0, 0, 255]]], dtype=np.uint8)
    rgba = Image.fromarray(pixels)
    palette = Image.fromarray(np.array([[0, 1]], dtype=np.uint8)).convert("P")
    palette.putpalette([0, 0, 0, 255, 0, 0])
    return [
        saved(rgba, folder / "alpha.png"),
        saved(rgba, folder / "alpha.webp", lossless=True, exact=True),
        saved(rgba, folder / "alpha.tif"),
        saved(palette, folder / "palette.png", transparency=0),
        saved(palette, folder / "palette.gif", transparency=0),
        saved(rgba.convert("RGB"), folder / "trns.png", transparency=(0, 0, 0)),
    ]


def test_transparency_is_laid_on_the_background(tmp_path: Path) -> None:
    for file in transparent_images(tmp_path):
        for background, color in (("white", [255] * 3), ("#102030", [16, 32, 48])):
            found = decode(file, 3, background)
            assert found[:, 0, 0].tolist() == color, file
            assert found[:, 0, 1].tolist() == [255, 0, 0], file
        assert decode(file, 1).flatten().tolist() == [255, 76]


def test_transparent_grey_and_half_transparency(tmp_path: Path) -> None:
    gray = Image.fromarray(np.array([[9, 100]], dtype=np.uint8))
    file = saved(gray, tmp_path / "gray.png", transparency=9)
    assert decode(file, 1).flatten().tolist() == [255, 100]
    deep = Image.fromarray(np.array([[0, 500, 1000]], dtype=np.uint16))
    file = saved(deep, tmp_path / "deep.png", transparency=500)
    assert decode(file, 1).flatten().tolist() == [0, 255, 255]
    assert decode(file, 3, "blue")[:, 0, 1].tolist() == [0, 0, 255]
    half = Image.new("LA", (1, 1), (100, 255))
    half.putalpha(51)  # a fifth
    file = saved(half, tmp_path / "half.png")
    expected = 255 - (255 - half.getpixel((0, 0))[0]) / 5
    assert abs(int(decode(file, 1)[0, 0, 0]) - expected) <= 1


def test_a_turned_photograph_is_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter
    file = saved(Image.new("RGB", (6, 4)), tmp_path / "turned.jpg", exif=exif)
    assert decode(file, 3).shape == (3, 6, 4)


def test_what_cannot_be_read_is_named_in_one_line(tmp_path: Path) -> None:
    whole = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(whole, "png")
    files = {
        "empty.png": (b"", r"empty\.png is empty \(0 bytes\)$"),
        "text.jpg": (b"no image", r"text\.jpg cannot be read as an image: it is none of JPEG, "),
        "cut.png": (whole.getvalue()[:900], r"cut\.png cannot be read as an image: .*truncated"),
    }
    for name, (content, message) in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=message):
            decode(tmp_path / name, 3)
    with pytest.raises(UserError, match=r"none\.png cannot be read as an image: No such file"):
        decode(tmp_path / "none.png", 3)
    with pytest.raises(UserError, match=r"^the image is empty"):
        decode(b"", 3)
    with pytest.raises(UserError, match="2 channels: give 1 or 3"):
        decode(whole.getvalue(), 2)
    with pytest.raises(UserError, match="'whit', which is not a color"):
        decode(whole.getvalue(), 3, "whit")


@pytest.mark.parametrize(
    ("mode", "gray"),
    [("1", True), ("L", True), ("LA", True), ("I;16", True), ("F", True), ("RGB", False)],
)
def test_gray_is_distinguished_from_color_by_what_the_file_stores(mode: str, gray: bool) -> None:
    assert is_gray(Image.new(mode, (2, 2))) is gray
    if mode == "L":
        assert is_gray(Image.fromarray(NOISE[..., 0]).convert("P"))
        assert not is_gray(Image.fromarray(NOISE).quantize(8))
