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
    result = zoo_cli("uncertainty", "--weights", "resnet_fmnist", "--images", "100")
    assert result.code == 0, result.err
    assert "100 test images of FashionMNIST; out of distribution: 100 of Digits" in result.out
    assert "has no dropout: MC dropout does not apply" in result.out
    assert "calibration: as the checkpoint keeps it" in result.out
    words = "classwise ECE, coverage at 1 % risk, MaxLogit-pNorm, APS, LAC, Ankle boot, energy"
    for word in words.split(", "):
        assert word in result.out
    for kind in ("noise", "blur", "contrast", "shift"):
        assert all(f"{kind} {strength} " in result.out for strength in range(1, 6))
    folder = tmp_path / "runs/resnet_fmnist/uncertainty"
    for name in ("reliability", "certainty", "risk", "corruption"):
        assert image.imread(folder / f"{name}.png").shape[0] > 300


def test_an_ensemble_in_one_table(zoo_cli, tmp_path: Path, digits_weights, no_fashion_mnist):
    zoo_cli("fit", "--recipe", "resnet_digits", *SHORT, "--seed_everything", "1")
    other = "runs/resnet_digits/version_1/checkpoints/last.ckpt"
    command = ["uncertainty", "--recipe", "resnet_digits", "--ckpt_path", digits_weights]
    result = zoo_cli(*command, "--ensemble", other, "--json", "--to", "pictures")
    assert result.code == 0, result.err
    content = json.loads(result.out)
    assert content["out_of_distribution"] is None  # the other images are not on this machine
    assert set(content["rows"]) == {"one forward", "ensemble of 2", "calibrated"}
    one, both, calibrated = content["rows"].values()
    assert calibrated["nll"] < one["nll"]
    assert calibrated["accuracy"] == one["accuracy"]
    assert set(content["sets"]) == {"APS, 95%", "LAC, 95%"}
    assert list(content["sets"]["APS, 95%"]["by_class"]) == list("0123456789")
    clean, *corrupted = content["corrupted"]
    assert len(corrupted) == 20
    assert min(row["accuracy"] for row in corrupted) < clean["accuracy"]
    # Without a recipe the run's folder says which data it was trained on.
    run = str(Path(digits_weights).parent.parent)
    by_run = zoo_cli("uncertainty", "--weights", run, "--json", "--to", "pictures")
    assert by_run.code == 0, by_run.err
    assert json.loads(by_run.out)["rows"]["one forward"] == one
    assert one["accuracy"] > 0.5
    assert one["nll"] != both["nll"]
    assert one["auroc_ood"] is None
    assert sorted(p.name for p in (tmp_path / "pictures").iterdir()) == [
        "certainty.png",
        "corruption.png",
        "reliability.png",
        "risk.png",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "resnet_digits"], "ships no weights: give --ckpt_path"),
        (["--recipe", "resnet_fmnist", "--samples", "0"], "--samples is 0"),
        (["--recipe", "resnet_digits", "--ckpt_path", "WEIGHTS", "--ood", "digits"], "trained on"),
        (["--recipe", "resnet_digits", "--ckpt_path", "WEIGHTS", "--ood", "cats"], "--ood cats"),
        (["--recipe", "resnet_digits", "--ckpt_path", "nowhere.ckpt"], "no such checkpoint"),
        ([], "uncertainty needs weights: give --weights X or --recipe NAME"),
        (["--weights", "resnet_fmnits"], "did you mean"),
        (
            ["--weights", "transformer_shakespeare"],
            "is a LanguageModel: uncertainty needs an image classifier",
        ),
    ],
)
def test_bad_input_is_one_line(zoo_cli, digits_weights, arguments, message) -> None:
    result = zoo_cli("uncertainty", *[digits_weights if a == "WEIGHTS" else a for a in arguments])
    assert result.code == 2
    assert message in result.err.splitlines()[-1]
    assert "Traceback" not in result.err
