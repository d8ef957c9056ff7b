"""A decoded image becomes what the data module would have made of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.photos import write_photos
from zoo.data import Digits, ImageFolder
from zoo.data.decode import decode
from zoo.data.files import ImageFile, find_images
from zoo.data.transform import Transform
from zoo.errors import UserError


def test_images_of_a_folder_are_those_of_its_validation(tmp_path: Path) -> None:
    folder = write_photos(tmp_path / "photos", each=4, side=50)
    data = ImageFolder(str(folder), image_size=24, workers=0)
    data.prepare_data()
    data.setup("fit")
    transform = Transform(data.describe())
    files = data.files("validation")
    batches = [data.normalize(images) for images, _ in data.plain("validation")]
    expected = torch.cat(batches)
    assert len(expected) == len(files) == 6
    for file, image in zip(files, expected, strict=True):
        assert torch.equal(transform(decode(folder / file, 3)), image)


def test_images_of_the_right_size_are_only_normalized() -> None:
    data = Digits()
    images, _ = data.read(train=True)
    transform = Transform(data.describe())
    assert torch.equal(transform(images[0]), data.normalize(images[:1])[0])
    with pytest.raises(UserError, match=r"expected a decoded image, uint8 \(1, H, W\), and not"):
        transform(images[0].float())
    with pytest.raises(UserError, match="data_info has no mean, std, input_shape"):
        Transform({})


def test_files_are_found_once_with_the_class_of_their_folder(tmp_path: Path) -> None:
    folder = write_photos(tmp_path / "photos", each=1, side=50)
    deep = folder / "brick" / "more" / "x.PNG"
    deep.parent.mkdir()
    (folder / "brick" / "0.png").rename(deep)
    (folder / "brick" / "notes.txt").write_text("x")
    files, others = find_images([folder / "grass" / "0.png", folder, folder / "brick"])
    assert [file.path.relative_to(folder).as_posix() for file in files] == [
        "grass/0.png",
        "brick/more/x.PNG",
        "flower/0.png",
        "gravel/0.png",
        "stars/0.png",
        "temple/0.png",
    ]
    assert others == 1  # the notes
    assert [file.label(["brick", "grass"]) for file in files[:3]] == ["grass", "brick", None]
    assert ImageFile(deep).label(["brick"]) is None
