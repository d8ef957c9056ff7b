from __future__ import annotations

import json
from pathlib import Path

import pytest
from matplotlib import image

from tests.conftest import needs_fashion_mnist

SHORT = ["--trainer.max_epochs", "2", "--test_after_fit", "false"]


@pytest.fixture
def digits_weights(zoo_cli, tmp_path: Path) -> str:
    zoo_cli("fit", "--recipe", "resnet_digits", *SHORT)
    return "runs/resnet_digits/version_0/checkpoints/last.ckpt"


@needs_fashion_mnist
def test_shipped_weights(zoo_cli, tmp_path: Path) -> None:
    result = zoo_cli("uncertainty", "--recipe", "resnet_fmnist", "--images", "500")
    assert result.code == 0, result.err
    assert "500 test images of FashionMNIST; out of distribution: 360 of Digits" in result.out
    assert "has no dropout: MC dropout does not apply" in result.out
    for name in ("reliability.png", "certainty.png"):
        assert image.imread(tmp_path / "runs/resnet_fmnist/uncertainty" / name).shape[0] > 300


def test_an_ensemble_in_one_table(zoo_cli, tmp_path: Path, digits_weights, no_fashion_mnist):
    zoo_cli("fit", "--recipe", "resnet_digits", *SHORT, "--seed_everything", "1")
    other = "runs/resnet_digits/version_1/checkpoints/last.ckpt"
    command = ["uncertainty", "--recipe", "resnet_digits", "--ckpt_path", digits_weights]
    result = zoo_cli(*command, "--ensemble", other, "--json", "--to", "pictures")
    assert result.code == 0, result.err
    content = json.loads(result.out)
    assert content["out_of_distribution"] is None  # the other images are not on this machine
    assert set(content["rows"]) == {"one forward", "ensemble of 2"}
    one, both = content["rows"].values()
    assert one["accuracy"] > 0.5
    assert one["nll"] != both["nll"]
    assert one["auroc_ood"] is None
    assert sorted(p.name for p in (tmp_path / "pictures").iterdir()) == [
        "certainty.png",
        "reliability.png",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "resnet_digits"], "ships no weights: give --ckpt_path"),
        (["--recipe", "resnet_fmnist", "--samples", "0"], "--samples is 0"),
        (["--recipe", "resnet_digits", "--ckpt_path", "WEIGHTS", "--ood", "digits"], "trained on"),
        (["--recipe", "resnet_digits", "--ckpt_path", "WEIGHTS", "--ood", "cats"], "--ood cats"),
        (["--recipe", "resnet_digits", "--ckpt_path", "nowhere.ckpt"], "no such checkpoint"),
        ([], "--recipe"),
    ],
)
def test_bad_input_is_one_line(zoo_cli, digits_weights, arguments, message) -> None:
    result = zoo_cli("uncertainty", *[digits_weights if a == "WEIGHTS" else a for a in arguments])
    assert result.code == 2
    assert message in result.err.splitlines()[-1]
    assert "Traceback" not in result.err
