"""From a folder of photographs to predictions, and to a file that runs without zoo and torch."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

import zoo
from tests.photos import write_odd_files, write_photos

# Ten lines, of which no other package is imported: not torch, not the zoo.
ELSEWHERE = """
import sys, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
images = numpy.load(sys.argv[2])  # uint8 (N, 3, H, W), as they were decoded
probabilities = session.run(None, {"images": images})[0]
assert not {"torch", "zoo", "torchvision"} & set(sys.modules)
numpy.save(sys.argv[3], probabilities)
"""


def rows(file: str) -> list[dict[str, str]]:
    with Path(file).open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def by_torchvision(run: str, files: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Probabilities by torchvision's own transforms; its decoder where no pixels are given."""
    model = zoo.load(run)
    transform = v2.Compose(
        [
            v2.Resize(73, antialias=True),  # 64 / 0.875
            v2.CenterCrop(64),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    found = {}
    for file, pixels in files.items():
        image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
        with torch.no_grad():
            found[file] = model.network(transform(image)[None]).softmax(1)[0]
    return found


def decoded(folder: Path, meant: dict[str, np.ndarray], file: str) -> np.ndarray:
    name = Path(file).relative_to(folder).as_posix()
    if name in meant:
        return meant[name]
    return decode_image(file, ImageReadMode.RGB).permute(1, 2, 0).numpy()


def assert_same(row: dict[str, str], classes: list[str], expected: torch.Tensor) -> None:
    for rank in range(1, 6):
        index = classes.index(row[f"class_{rank}"])
        assert float(row[f"probability_{rank}"]) == pytest.approx(float(expected[index]), abs=1e-5)


@pytest.mark.slow
def test_three_commands_and_the_file_that_they_lead_to(zoo_cli: Any) -> None:
    pytest.importorskip("onnxruntime")
    write_odd_files(write_photos(Path("PHOTOS"), each=30))
    folder = write_photos(Path("NEW_PHOTOS"), each=12)
    meant = write_odd_files(folder)

    # 1. As the documents have them, for one epoch.
    data = ("--recipe", "finetune_imagefolder", "--data.folder", "PHOTOS", "--data.workers", "0")
    fit = ("fit", *data, "--init_from", "resnet_fmnist", "--trainer.max_epochs", "1")
    done = zoo_cli(*fit, "--trainer.precision", "32-true")
    assert done.code == 0, done.err
    for reason in (
        "  2 unreadable:",
        "  1 empty:\n    flower/empty.png is empty (0 bytes)",
        "  1 hidden:\n    flower/.hidden.png",
        "  1 the format '.cr2' is not read:\n    flower/raw.cr2",
        "  1 outside of the class folders:\n    loose.png",
        " the same bytes in two splits:\n    ",
        ") has the bytes of temple/",
        "images, read as three equal channels",
    ):
        assert reason in done.out
    assert "conv1.weight                 adapted  from 1 to 3 input channels" in done.out
    run = "runs/finetune_imagefolder/version_0"
    tested = zoo_cli("test", *data, "--ckpt_path", "last", "--trainer.precision", "32-true")
    assert tested.code == 0, tested.err
    metrics = json.loads(Path(run, "run.json").read_text())["metrics"]
    assert f"test/accuracy           {metrics['test/accuracy']:.2%}" in tested.out
    predicted = zoo_cli("predict", "NEW_PHOTOS", "--weights", run)
    assert predicted.code == 1
    table = rows("predictions.csv")
    broken = {Path(row["file"]).name for row in table if row["error"]}
    assert broken == {"torn.jpg", "torn.png", "empty.png"}

    read = [row for row in table if not row["error"]]
    assert set(meant) <= {Path(row["file"]).relative_to(folder).as_posix() for row in read}
    pixels = {row["file"]: decoded(folder, meant, row["file"]) for row in read}
    expected = by_torchvision(run, pixels)
    classes = zoo.load(run).data_info["classes"]
    for row in read:
        assert_same(row, classes, expected[row["file"]])

    # 2. Calibrated, exported, and run where neither torch nor the zoo is.
    done = zoo_cli("publish", run, "--name", "photos", "--to", "out")
    assert done.code == 0, done.err
    assert zoo.load("out/photos").temperature != 1
    card = Path("out/photos/README.md").read_text()
    assert "Training began from the weights of resnet_fmnist." in card
    assert "the middle of images of any size (87.5% of the shorter side)" in card
    export = ("export", "--weights", "out/photos", "--format", "onnx")
    done = zoo_cli(*export, "--with", "preprocessing,probabilities", "--out", "photos.onnx")
    assert done.code == 0, done.err
    predicted = zoo_cli("predict", "NEW_PHOTOS", "--weights", "out/photos", "--top", "6")
    assert predicted.code == 1
    read = [row for row in rows("predictions.csv") if not row["error"]]
    np.save("images.npy", np.stack([pixels[row["file"]] for row in read]).transpose(0, 3, 1, 2))
    command = [sys.executable, "-c", ELSEWHERE, "photos.onnx", "images.npy", "found.npy"]
    subprocess.run(command, check=True)
    for row, found in zip(read, np.load("found.npy"), strict=True):
        for rank in range(1, 7):
            share = float(row[f"probability_{rank}"])
            assert found[classes.index(row[f"class_{rank}"])] == pytest.approx(share, abs=1e-4)
