"""A network's arguments that follow from the data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from zoo.cli.building import from_recipe

FOLDER = """
model:
  class_path: zoo.tasks.ImageClassifier
  init_args:
    network: {class_path: zoo.networks.ResNet, init_args: {layers: [1], width: 4, stem: small}}
data:
  class_path: zoo.data.ImageFolder
  init_args: {image_size: 32, batch_size: 4, workers: 0}
trainer: {max_epochs: 1}
"""
TEXT = """
model:
  class_path: zoo.tasks.LanguageModel
  init_args:
    network: {class_path: zoo.networks.Transformer, init_args: {embed_dim: 16, depth: 1}}
data:
  class_path: zoo.data.TextFile
  init_args: {path: text.txt, context_length: 24}
"""


@pytest.fixture
def photos(own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three classes of grayscale images, and a recipe that says nothing of them."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for index in range(30):
        file = Path("photos", "abc"[index % 3], f"{index}.png")
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (40, 40), dtype=np.uint8)).save(file)
    Path("mine.yaml").write_text(FOLDER)
    return Path("photos")


def test_classes_and_channels_follow_the_images(photos: Path) -> None:
    task, data = from_recipe("mine.yaml", ["--data.folder", "photos"])
    assert (task.network.num_classes, task.network.conv1.in_channels) == (3, 1)
    assert data.classes == ["a", "b", "c"]
    # Typing them still works; a network of three channels is given three.
    typed = ["--data.folder", "photos", "--model.network.in_channels", "3"]
    task, data = from_recipe("mine.yaml", [*typed, "--model.network.num_classes", "3"])
    assert task.network.conv1.in_channels == 3
    assert data.input_shape == [3, 32, 32]
    task, _ = from_recipe("mine.yaml")  # without images, what the network's author chose
    assert task.network.num_classes == 1000


def test_the_image_size_follows_too() -> None:
    task, _ = from_recipe("vit_small_imagefolder", ["--data.image_size", "64"])
    assert task.network.pos_embed.shape[1] == 1 + (64 // 16) ** 2


def test_what_is_followed_is_recorded_and_a_contradiction_is_one_line(
    zoo_cli, photos: Path
) -> None:
    fit = ("fit", "--recipe", "mine.yaml", "--data.folder", "photos")
    result = zoo_cli(*fit)
    assert result.code == 0, result.err
    assert "photos: 30 images of 3 classes" in result.out
    config = yaml.safe_load(Path("runs/mine/version_0/config.yaml").read_text())
    assert config["model"]["init_args"]["network"]["init_args"]["num_classes"] == 3
    again = zoo_cli(
        "test", "--recipe", "mine.yaml", "--data.folder", "photos", "--ckpt_path", "last"
    )
    assert again.code == 0, again.err
    assert Path("runs/mine/version_1/confusion_test.png").is_file()
    result = zoo_cli(*fit, "--model.network.num_classes", "5")
    assert result.code == 2
    assert "photos has 3 classes, and the network 5 outputs" in result.err
    assert len(list(Path("runs/mine").iterdir())) == 2


def test_vocabulary_and_context_follow_the_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("to be or not to be " * 30)
    Path("mine.yaml").write_text(TEXT)
    task, _ = from_recipe("mine.yaml")
    assert (task.network.vocab_size, task.network.context_length) == (len(set("to be rn")), 24)
    task, _ = from_recipe("mine.yaml", ["--model.network.context_length", "48"])
    assert task.network.context_length == 48


def test_check_data_stops_after_the_check(zoo_cli, photos: Path) -> None:
    check = ("fit", "--recipe", "mine.yaml", "--check_data", "--data.folder", "photos")
    result = zoo_cli(*check)
    assert result.code == 0, result.err
    assert "  total     24      3      3" in result.out
    assert not Path("runs").exists()
    (photos / "a" / "zero.png").write_bytes(b"")
    result = zoo_cli(*check)
    assert result.code == 2
    assert "1 empty:\n    a/zero.png is empty (0 bytes)" in result.out
    assert "zero.png is empty (0 bytes). Repair or remove it, " in result.err
    assert zoo_cli(*check, "--data.corrupt", "skip").code == 0
    result = zoo_cli("fit", "--recipe", "mine.yaml", "--check_data")
    assert result.code == 2
    assert "data.folder is missing: give --data.folder PATH" in result.err
    result = zoo_cli("fit", "--recipe", "resnet_digits", "--check_data", "true")
    assert result.out == "Digits: train 1,257, val 180, test 360\n"
