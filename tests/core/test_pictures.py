from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from zoo.core.pictures import animate, save_grid, save_labeled


def test_a_grid_shows_every_image_in_its_place(tmp_path: Path) -> None:
    images = torch.zeros(6, 1, 4, 4)
    images[4] = 1  # second row of three, second column
    save_grid(images, 3, tmp_path / "new" / "grid.png", scale=1)
    picture = Image.open(tmp_path / "new" / "grid.png").convert("L")
    assert picture.size == (3 * 5 + 1, 2 * 5 + 1)
    assert picture.getpixel((7, 7)) == 255
    assert picture.getpixel((2, 7)) == 0
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["grid.png"]


def test_a_labeled_grid_of_color_images(tmp_path: Path) -> None:
    save_labeled(torch.rand(5, 3, 8, 8), 3, ["one", "two"], tmp_path / "grid.png", "title")
    assert Image.open(tmp_path / "grid.png").size[0] > 200


def test_an_animation_has_a_frame_for_each_picture(tmp_path: Path) -> None:
    frames = []
    for index in range(3):
        frames.append(tmp_path / f"{index}.png")
        save_grid(torch.full((1, 1, 4, 4), index / 2), 1, frames[-1])
    animate(frames, tmp_path / "all.gif")
    assert Image.open(tmp_path / "all.gif").n_frames == 3
