"""Image files in, classes out: equal to torchvision's own few lines, and honest about the rest."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import zoo
from tests.photos import write_photos
from zoo.checkpoints import store
from zoo.errors import UserError


def rows(file: str) -> list[dict[str, str]]:
    with Path(file).open(encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture
def weights(tmp_path: Path) -> str:
    """A network with dropout, for photographs of 32 × 32, that nobody trained."""
    torch.manual_seed(0)
    network = zoo.networks.ConvNet(3, 3, size="small", drop_rate=0.3)
    task = zoo.tasks.ImageClassifier(network)
    task.data_info = {
        "name": "photos",
        "classes": ["brick", "grass", "temple"],
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.25, 0.3],
        "input_shape": [3, 32, 32],
        "crop_pct": 0.875,
    }
    store.save(task, tmp_path / "weights", {})
    return str(tmp_path / "weights")


def by_torchvision(model: zoo.tasks.ImageClassifier, file: str) -> torch.Tensor:
    """Ten lines without the zoo's data package."""
    from torchvision.io import ImageReadMode, decode_image
    from torchvision.transforms import v2

    transform = v2.Compose(
        [
            v2.Resize(37, antialias=True),  # 32 / 0.875
            v2.CenterCrop(32),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.5, 0.4, 0.3], [0.2, 0.25, 0.3]),
        ]
    )
    with torch.no_grad():
        return model.network(transform(decode_image(file, ImageReadMode.RGB))[None]).softmax(1)[0]


def test_predictions_are_those_of_torchvision_alone(zoo_cli, weights: str) -> None:
    write_photos(Path("photos"), each=3, side=80)
    result = zoo_cli("predict", "photos", "--weights", weights, "--json", "--batch_size", "4")
    assert result.code == 0, result.err
    found, model = json.loads(result.out), zoo.load(weights)
    assert len(found) == 18
    for row in found:
        expected = by_torchvision(model, row["file"])
        for one in row["classes"]:
            index = model.data_info["classes"].index(one["class"])
            assert one["probability"] == pytest.approx(float(expected[index]), abs=1e-5)
        assert row["classes"][0]["probability"] == pytest.approx(float(expected.max()), abs=1e-5)
        folder = Path(row["file"]).parent.name
        assert row.get("true_class") == (folder if folder in ("brick", "grass", "temple") else None)
    assert not Path("predictions.csv").exists()

    # The same from Python, of every kind of picture.
    file = found[0]["file"]
    image = Image.open(file).convert("RGB")
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    together = model.predict([file, Path(file), image, array, tensor], batch_size=2)
    expected = by_torchvision(model, file)
    for probabilities in together:
        torch.testing.assert_close(probabilities, expected, atol=1e-5, rtol=0)
    gray = np.asarray(Image.open(file).convert("L"))
    torch.testing.assert_close(model.predict([gray]), model.predict([gray[:, :, None]]))
    assert model.predict([]).shape == (0, 3)
    for wrong, message in (
        (tensor.float(), "give normalized images to the model itself"),
        (array.astype(float), "an array is taken for uint8"),
        (3, "3 is not an image"),
        ("nowhere.png", "nowhere.png"),
    ):
        with pytest.raises(UserError, match=message):
            model.predict([wrong])


def test_odd_files_are_rows_and_a_table_says_the_rest(
    zoo_cli, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as a notebook's kernel does
    folder = write_photos(Path("photos"), each=2, side=40)
    (folder / "brick" / "empty.png").write_bytes(b"")
    (folder / "brick" / "torn.png").write_bytes((folder / "brick" / "0.png").read_bytes()[:200])
    (folder / "grass" / "notes.txt").write_text("no image")
    (folder / "grass" / ".hidden.png").write_bytes(b"hidden")
    Image.new("LA", (40, 50), (0, 0)).save(folder / "grass" / "clear.png")
    Image.fromarray(np.arange(1600, dtype=np.uint16).reshape(40, 40)).save(folder / "deep.tif")
    result = zoo_cli("predict", "photos", "--weights", weights, "--top", "2", "--workers", "1")
    assert result.code == 1
    table = rows("predictions.csv")
    assert list(table[0]) == [
        *("file", "class_1", "probability_1", "class_2", "probability_2", "true_class", "error"),
    ]
    broken = {Path(row["file"]).name: row["error"] for row in table if row["error"]}
    assert set(broken) == {"empty.png", "torn.png"}
    assert "is empty (0 bytes)" in broken["empty.png"]
    assert all(row["class_1"] == "" for row in table if row["error"])
    names = {Path(row["file"]).name for row in table}
    assert {"clear.png", "deep.tif"} <= names
    assert not {"notes.txt", ".hidden.png"} & names
    assert "images: 14 of 16 files" in result.out
    assert "\x1b" not in result.err  # what a progress bar would write
    assert "left out: 1 file in folders" in result.out
    assert "of the 7 whose folder names their class" in result.out
    # A transparent image is the background's color.
    model = zoo.load(weights)
    white = model.predict([np.full((40, 50), 255, np.uint8)])[0]
    (clear,) = [row for row in table if row["file"].endswith("clear.png")]
    assert float(clear["probability_1"]) == pytest.approx(float(white.max()), abs=1e-5)


def test_dropout_sampled_at_prediction(zoo_cli, weights: str) -> None:
    write_photos(Path("photos"), each=1, side=40)
    arguments = ("predict", "photos/brick/0.png", "photos/grass", "--weights", weights)
    result = zoo_cli(*arguments, "--mc", "20", "--out", "out/mine.csv")
    assert result.code == 0, result.err
    table = rows("out/mine.csv")
    assert len(table) == 2
    for row in table:
        assert 0 < float(row["mutual_information"]) < float(row["predictive_entropy"]) < 1.1
        shares = [float(row[f"probability_{rank}"]) for rank in (1, 2, 3)]
        assert sum(shares) == pytest.approx(1, abs=1e-5)
        own = -sum(share * np.log(share) for share in shares)
        assert float(row["predictive_entropy"]) == pytest.approx(own, abs=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.png", "--weights", "resnet_fmnist"], "no such file or folder: nowhere.png"),
        ([".", "--weights", "resnet_fmnist"], "no image in it"),
        (["some.txt", "--weights", "transformer_shakespeare"], "LanguageModel has none"),
        (["some.txt", "--weights", "resnet_fmnits"], "did you mean 'resnet_fmnist'"),
        (["some.txt", "--weights", "resnet_fmnist", "--top", "0"], "--top is 0"),
        (["some.txt", "--weights", "resnet_fmnist", "--background", "whte"], "not a color"),
        (["some.txt"], "the following arguments are required: --weights"),
    ],
)
def test_what_cannot_be_predicted_is_one_line(zoo_cli, arguments, message) -> None:
    Path("some.txt").write_text("no image")
    result = zoo_cli("predict", *arguments)
    assert result.code == 2
    assert message in result.err
    assert not Path("predictions.csv").exists()


def test_features_of_files_are_what_the_classifier_sees(zoo_cli, weights: str) -> None:
    folder = write_photos(Path("photos"), each=1, side=40)
    (folder / "torn.png").write_bytes(b"torn")
    result = zoo_cli("embed", "photos", "--weights", weights, "--out", "f.npz")
    assert result.code == 1
    assert "torn.png" in result.err
    content = np.load("f.npz")
    assert content["features"].shape[0] == len(content["files"]) == 6
    model = zoo.load(weights)
    features = torch.from_numpy(content["features"])
    logits = model.network.get_classifier()(features)
    torch.testing.assert_close(
        logits.softmax(1), model.predict(content["files"].tolist()), atol=1e-5, rtol=0
    )


def test_sets_and_probabilities_are_by_what_publish_fitted(zoo_cli, weights: str) -> None:
    write_photos(Path("photos"), each=2, side=40)
    plain = zoo.load(weights)
    file = Path(weights) / "config.json"
    fitted = {
        "split": "validation",
        "images": 100,
        "temperature": 0.5,
        "confidence_p": None,
        "sets": {"aps": {"0.9": 0.5, "0.95": 2.0}, "lac": {}},
    }
    file.write_text(json.dumps({**json.loads(file.read_text()), "calibration": fitted}))
    done = zoo_cli("predict", "photos", "--weights", weights, "--json", "--sets", "0.95")
    assert done.code == 0, done.err
    for row in json.loads(done.out):
        # A threshold of 2 leaves no class out.
        assert sorted(row["set"]) == ["brick", "grass", "temple"]
        expected = by_torchvision(plain, row["file"]).square()  # a temperature of a half
        expected = expected / expected.sum()
        assert row["classes"][0]["probability"] == pytest.approx(float(expected.max()), abs=1e-5)
    narrow = zoo_cli("predict", "photos", "--weights", weights, "--sets", "0.9")
    assert narrow.code == 0
    for row in rows("predictions.csv"):
        chosen = [name for name in row["set"].split("; ") if name]
        # APS sums up what is likelier: a set of 0.5 holds at most the classes that reach it.
        likelier, reached = [], 0.0
        for rank in (1, 2, 3):
            if reached > 0.5:
                break
            likelier.append(row[f"class_{rank}"])
            reached += float(row[f"probability_{rank}"])
        assert set(chosen) <= set(likelier)
    # Dropout changes no set: it was fitted to the probabilities of one forward.
    alone = [row["set"] for row in rows("predictions.csv")]
    sampled = zoo_cli("predict", "photos", "--weights", weights, "--sets", "0.9", "--mc", "3")
    assert sampled.code == 0, sampled.err
    assert [row["set"] for row in rows("predictions.csv")] == alone
    refused = zoo_cli("predict", "photos", "--weights", weights, "--sets", "0.8")
    assert refused.code == 2
    assert "was calibrated for 0.9, 0.95" in refused.err
    refused = zoo_cli("predict", "photos", "--weights", "gan_fmnist", "--sets", "0.9")
    assert refused.code == 2
