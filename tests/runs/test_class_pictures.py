from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tasks.test_image_classifier import network, trainer
from zoo.data import Digits
from zoo.runs.class_pictures import ClassPictures, draw_confusion, draw_errors, write_by_class
from zoo.tasks import ImageClassifier


def test_a_test_keeps_its_most_certain_errors(tmp_path: Path) -> None:
    torch.manual_seed(0)
    task, data = ImageClassifier(network()).eval(), Digits()
    pictures = ClassPictures(tmp_path)
    drawn: list = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zoo.runs.class_pictures.draw_errors", lambda *given: drawn.append(given))
        trainer(tmp_path, callbacks=[pictures], limit_test_batches=1.0).test(
            task, datamodule=data, verbose=False
        )
    (((images, captions, path)),) = drawn
    assert path == tmp_path / "errors_test.png"
    inputs, labels = data._test
    with torch.no_grad():
        confidence, predicted = task(data.normalize(inputs)).softmax(1).max(1)
    wrong = (predicted != labels).nonzero().flatten()
    worst = wrong[confidence[wrong].argsort(descending=True)][:24]
    assert [int(lines[2].removeprefix("image ")) for lines in captions] == worst.tolist()
    torch.testing.assert_close(images, inputs[worst] / 255, atol=1e-5, rtol=0)
    first = worst[0]
    assert captions[0][0] == f"{predicted[first]} {confidence[first]:.1%}"
    assert captions[0][1] == f"true: {labels[first]}"
    assert (tmp_path / "confusion_test.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "by_class_test.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["images"]) for row in rows] == labels.bincount().tolist()
    hits = [(predicted[labels == k] == k).float().mean().item() for k in range(10)]
    assert [float(row["recall"]) for row in rows] == pytest.approx(hits, abs=1e-4)


def test_a_fit_draws_its_last_validation(tmp_path: Path) -> None:
    task = ImageClassifier(network(), ema_decay=0.9)
    run = trainer(tmp_path, callbacks=[ClassPictures(tmp_path)], max_steps=2)
    run.fit(task, datamodule=Digits())
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {"confusion_val.png", "errors_val.png", "by_class_val.csv"}


@pytest.mark.parametrize("count", [2, 40, 1000])
def test_pictures_of_few_and_of_many_classes(tmp_path: Path, count: int) -> None:
    matrix = torch.eye(count, dtype=torch.long) * 3
    matrix[0, 1] = 1
    matrix[1] = 0
    names = [f"class number {label} ключ" for label in range(count)]
    draw_confusion(matrix, names, tmp_path / "c.png")
    pixels = np.asarray(Image.open(tmp_path / "c.png")).astype(int)
    assert 400 <= pixels.shape[1] < 2000
    colors = {tuple(color) for color in pixels.reshape(-1, 3)}
    assert len(colors) > 3
    write_by_class(matrix, names, tmp_path / "c.csv")
    lines = (tmp_path / "c.csv").read_text(encoding="utf-8").splitlines()
    assert lines[2].endswith(",0,,0.0000,0.0000")


def test_errors_of_any_size_and_channels(tmp_path: Path) -> None:
    for shape in ((7, 1, 8, 8), (1, 3, 300, 200), (3, 4, 20, 40)):
        captions = [["a long predicted class name 99.9 %", "true: b", "x/" * 40 + "file.png"]]
        draw_errors(torch.rand(shape), captions * shape[0], tmp_path / "e.png")
        assert Image.open(tmp_path / "e.png").width == min(6, shape[0]) * 140 + 12
