from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import zoo
from zoo.checkpoints import store
from zoo.errors import UserError
from zoo.recipes import shipped_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(
        shutil.copytree(shipped_folder("checkpoints") / "resnet_fmnist", tmp_path / "foreign")
    )


def change(folder: Path, path: str, value: Any) -> None:
    """Sets a value of config.json, ``network.args.width`` say; deletes it for ``...``."""
    config = json.loads((folder / "config.json").read_text())
    *parents, last = path.split(".")
    part = config
    for key in parents:
        part = part[key]
    if value is ...:
        del part[last]
    else:
        part[last] = value
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("network.args", {}, "much larger than its weights"),
        ("network.args.num_classes", ..., "weights do not fit the network: fc.weight is float32"),
        ("network.args", [], "network.args is .., expected an object"),
        ("network", None, "network is None, expected an object"),
        ("data", ..., "data is missing"),
        ("data.std", [0.0], r"data.std\[0\] is 0.0, expected a number above 0"),
        ("data.mean", [0.1, 0.2], "data.mean has 2 numbers for 1 channel$"),
        ("weights_sha256", True, "weights_sha256 is True, expected text"),
        ("weights_sha256", "0" * 63, "expected a sha256"),
        ("task.name", "Task", "no task named 'Task'"),
        ("task.args.lr", "0.1", r"ImageClassifier\(lr\) is '0.1', expected a finite number"),
        ("task.args.lr", -1.0, "task: model.lr is -1.0"),
        ("task.args.network", {"name": "x"}, "cannot be built|has no argument"),
        ("task.args.schedule", "no", r"ImageClassifier\(schedule\) is 'no', expected 'linear' or"),
        ("network.name", "x" * 5000, "no network named 'xxx"),
        ("network.args.width", None, r"ResNet\(width\) is None, expected a whole number"),
        ("network.args.width", 31, "cannot be built|do not fit"),
        ("network.args.widht", 32, "no argument 'widht'; did you mean 'width'"),
        ("network.args.layers", [1, 2, 500], "much larger than its weights"),
        ("network.args.width", 2**19, "much larger than its weights"),
        ("network.args.num_classes", 2**40, "is more than 1048576"),
    ],
)
def test_another_form_is_refused_in_one_line(
    folder: Path, path: str, value: Any, message: str
) -> None:
    change(folder, path, value)
    with pytest.raises(UserError, match=message) as error:
        zoo.load(folder)
    assert len(str(error.value)) < 600


@pytest.mark.parametrize("content", ["[]", "", "{", "null", "[" * 100_000, '{"task": NaN}'])
def test_what_is_no_configuration_is_refused(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    with pytest.raises(UserError, match=r"config\.json"):
        zoo.load(folder)


@pytest.mark.parametrize("damage", ["missing", "further", "shape", "dtype"])
def test_weights_of_another_network_are_refused(folder: Path, damage: str) -> None:
    weights = load_file(folder / "model.safetensors")
    if damage == "missing":
        del weights["fc.bias"]
    elif damage == "further":
        weights["other"] = torch.zeros(1)
    elif damage == "shape":
        weights["fc.bias"] = torch.zeros(11)
    else:
        weights["fc.bias"] = torch.zeros(10, dtype=torch.int64)
    save_file(weights, folder / "model.safetensors")
    change(folder, "weights_sha256", store.sha256(folder / "model.safetensors"))
    with pytest.raises(UserError, match=r"do not fit the network: '?(fc.bias|other)"):
        zoo.load(folder)


@pytest.mark.parametrize("options", [{"in_channels": 0}, {"num_classes": -1}, {"in_channels": "3"}])
def test_numbers_that_no_network_has_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="give a whole number from"):
        zoo.load("resnet_fmnist", **options)


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "../../etc", ""])
def test_a_name_of_nothing_is_reported(name: str) -> None:
    with pytest.raises(UserError, match=r"no checkpoint named|not a checkpoint|no such folder"):
        zoo.load(name)
