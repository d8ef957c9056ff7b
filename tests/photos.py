"""Real photographs without a download: patches of pictures that scikit-image and -learn bring."""

from __future__ import annotations

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
