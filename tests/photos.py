"""Real photographs without a download: patches of pictures that scikit-image and -learn bring."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import skimage
import sklearn.datasets
from PIL import Image

TEXTURES = Path(skimage.__file__).parent / "data"
PLACES = Path(sklearn.datasets.__file__).parent / "images"
CLASSES = {
    "brick": TEXTURES / "brick.png",
    "flower": PLACES / "flower.jpg",
    "grass": TEXTURES / "grass.png",
    "gravel": TEXTURES / "gravel.png",
    "stars": TEXTURES / "hubble_deep_field.jpg",
    "temple": PLACES / "china.jpg",
}


def write_photos(folder: Path, each: int, side: int = 64) -> Path:
    """Writes a sub-folder a class with ``each`` patches of ``side`` pixels as PNG files."""
    for name, picture in CLASSES.items():
        pixels = np.asarray(Image.open(picture))
        height, width = pixels.shape[:2]
        corners = [
            (top, left)
            for top in range(0, height - side + 1, side)
            for left in range(0, width - side + 1, side)
        ]
        order = np.random.default_rng(0).permutation(len(corners))[:each]
        (folder / name).mkdir(parents=True)
        for number, index in enumerate(order):
            top, left = corners[index]
            patch = Image.fromarray(pixels[top : top + side, left : left + side])
            patch.save(folder / name / f"{number}.png")
    return folder


def write_odd_files(folder: Path) -> dict[str, np.ndarray]:
    """Adds to photographs of ``write_photos`` what a folder of real ones also holds.

    Returns:
        The pixels (H, W, 3) that are meant by each file that other readers understand otherwise, or
        not at all, by its path in the folder.
    """
    flower, brick = folder / "flower", folder / "brick"
    grey = np.asarray(Image.open(brick / "0.png"))
    color = np.asarray(Image.open(flower / "0.png"))
    meant: dict[str, np.ndarray] = {}

    # 16 bits a pixel of which all, or 12, are used: shown by their own range.
    grey = grey.copy()
    grey[0, :2] = 0, 255  # so that the range is that of 8 bits, and nothing is to be rounded
    stretched = np.repeat(grey[:, :, None], 3, axis=2)
    for name, factor in (("16.tif", 257), ("12.tif", 16), ("12.png", 16)):
        Image.fromarray(grey.astype(np.uint16) * factor).save(brick / f"deep{name}")
        meant[f"brick/deep{name}"] = stretched
    for name in ("lossless.bmp", "lossless.tiff", "lossless.webp"):
        Image.fromarray(color).save(flower / name, lossless=True)
        meant[f"flower/{name}"] = color
    first = Image.fromarray(color).quantize(64)
    first.save(flower / "moving.gif", save_all=True, append_images=[first.rotate(90)])
    meant["flower/moving.gif"] = np.asarray(first.convert("RGB"))

    # What is transparent is white, whatever color is hidden there.
    clear = np.zeros(color.shape[:2], bool)
    clear[:20] = True
    alpha = np.where(clear, 0, 255).astype(np.uint8)
    Image.fromarray(np.dstack([color, alpha])).save(flower / "rgba.png")
    meant["flower/rgba.png"] = np.where(clear[:, :, None], 255, color).astype(np.uint8)
    entry = int(np.asarray(first)[0, 0])
    first.save(flower / "palette.png", transparency=entry)
    hidden = (np.asarray(first) == entry)[:, :, None]
    meant["flower/palette.png"] = np.where(hidden, 255, first.convert("RGB")).astype(np.uint8)
    shade = int(grey[0, 0])
    Image.fromarray(grey).save(brick / "trns.png", transparency=shade)
    seen = np.where(grey == shade, 255, grey).astype(np.uint8)
    meant["brick/trns.png"] = np.repeat(seen[:, :, None], 3, axis=2)
    for kind in ("jpg", "JPEG"):
        Image.fromarray(color).save(flower / f"usual.{kind}")

    # What is left out.
    whole = (flower / "usual.jpg").read_bytes()
    (flower / "torn.jpg").write_bytes(whole[: len(whole) // 2])
    (flower / "torn.png").write_bytes((flower / "0.png").read_bytes()[:700])
    (flower / "empty.png").write_bytes(b"")
    (flower / ".hidden.png").write_bytes(whole)
    (flower / "raw.cr2").write_bytes(b"raw")
    (folder / "loose.png").write_bytes(whole)
    for file in list((folder / "temple").iterdir()):  # some of which are in another split
        shutil.copy(file, file.with_stem(f"copy of {file.stem}"))
    return meant
