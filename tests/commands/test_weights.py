"""``--recipe``, ``--weights`` and ``--ckpt_path`` mean the same in every command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.conftest import needs_fashion_mnist
from zoo.checkpoints.source import recipe_of
from zoo.commands import chosen_weights
from zoo.errors import UserError
from zoo.recipes import shipped_folder

FINISHED = Path(__file__).parent.parent / "fixtures" / "format1" / "finished"


def options(**given: str) -> SimpleNamespace:
    return SimpleNamespace(**{"recipe": None, "weights": None, "ckpt_path": None, **given})


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished run of resnet_digits, the newest of two."""
    monkeypatch.chdir(tmp_path)
    Path("runs/resnet_digits/version_0").mkdir(parents=True)
    shutil.copytree(FINISHED, "runs/resnet_digits/version_1")
    return Path("runs/resnet_digits/version_1")


def test_weights_are_found_by_every_option(run: Path) -> None:
    last = run / "checkpoints" / "last.ckpt"
    found = chosen_weights(options(recipe="resnet_digits", ckpt_path="last"), "audit")
    assert found == last
    assert chosen_weights(options(recipe="resnet_fmnist"), "audit") == "resnet_fmnist"
    assert chosen_weights(options(weights=str(run)), "audit") == str(run)
    assert chosen_weights(options(ckpt_path=str(last)), "audit") == str(last)
    long = options(recipe="transformer_shakespeare_long")
    assert chosen_weights(long, "sample") == "transformer_shakespeare"
    for given, message in (
        (options(), "audit needs weights: give --weights X or --recipe NAME"),
        (options(weights="a", ckpt_path="last"), "give one of them"),
        (options(recipe="resnet_digits"), "ships no weights"),
        (options(recipe="vit_digits", ckpt_path="best"), "no run found in runs/vit_digits"),
    ):
        with pytest.raises(UserError, match=message):
            chosen_weights(given, "audit")


def test_weights_say_which_recipe_trained_them(run: Path) -> None:
    for source in (run, run.parent, run / "checkpoints" / "last.ckpt"):
        assert recipe_of(source) == str(run / "config.yaml")
    assert recipe_of("transformer_shakespeare") == "transformer_shakespeare_long"
    assert recipe_of(shipped_folder("checkpoints") / "resnet_fmnist") == "resnet_fmnist"
    assert recipe_of("timm:resnet18") is None


def test_commands_take_weights_in_place_of_a_recipe(zoo_cli) -> None:
    audits = [
        zoo_cli("audit", *given, "--json", "--fail-on", "never")
        for given in (("--weights", "resnet_fmnist"), ("--recipe", "resnet_fmnist"))
    ]
    assert [audit.code for audit in audits] == [0, 0]
    seen = [json.loads(audit.out)["seen"] for audit in audits]
    assert seen[0] == seen[1]
    assert seen[0]["BatchNorm"] > 0
    text = ("--prompt", "ROMEO:", "--max_new_tokens", "5", "--seed", "0")
    made = [
        zoo_cli("sample", option, "transformer_shakespeare", *text)
        for option in ("--weights", "--recipe", "--ckpt_path")
    ]
    assert made[0].code == 0, made[0].err
    assert made[0].out == made[1].out == made[2].out
    both = zoo_cli("audit", "--weights", "resnet_fmnist", "--model", "timm:resnet18")
    assert "give one of them" in both.err


@needs_fashion_mnist
def test_uncertainty_takes_the_data_that_trained_the_weights(zoo_cli) -> None:
    few = ("--images", "100", "--ood", "none", "--json")
    results = [
        zoo_cli("uncertainty", option, "resnet_fmnist", *few)
        for option in ("--weights", "--recipe")
    ]
    assert results[0].code == 0, results[0].err
    assert json.loads(results[0].out)["rows"] == json.loads(results[1].out)["rows"]
