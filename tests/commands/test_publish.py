from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

import zoo
from zoo import checkpoints
from zoo.cards import CARDS
from zoo.commands.publish import MEASURES

SHORT = (
    "fit",
    "--recipe",
    "resnet_digits",
    "--model.network.width",
    "8",
    "--trainer.max_epochs",
    "3",
)


def test_every_task_has_a_card_and_what_it_states() -> None:
    assert set(checkpoints.TASKS) == set(CARDS) == set(MEASURES)


def test_a_run_becomes_a_checkpoint(zoo_cli) -> None:
    assert zoo_cli(*SHORT).code == 0
    assert zoo_cli(*SHORT, "--seed_everything", "1").code == 0
    runs = Path("runs/resnet_digits")
    done = zoo_cli(
        *("publish", str(runs / "version_0"), "--name", "tiny", "--to", "out"),
        *("--seeds", str(runs / "version_1")),
    )
    assert done.code == 0, done.err
    folder = Path("out/tiny")
    assert {path.name for path in folder.iterdir()} == {
        "model.safetensors",
        "config.json",
        "README.md",
        "curves.png",
    }
    assert {path.name for path in Path("out").iterdir()} == {"tiny", "MANIFEST.json"}
    manifest = json.loads(Path("out/MANIFEST.json").read_text())
    assert manifest["tiny/model.safetensors"] == checkpoints.sha256(folder / "model.safetensors")

    config = json.loads((folder / "config.json").read_text())
    facts = json.loads((runs / "version_0/run.json").read_text())
    assert config["metrics"]["test/accuracy"] == pytest.approx(
        facts["metrics"]["test/accuracy"], abs=1e-5
    )
    assert [seed["seed"] for seed in config["seeds"]] == [0, 1]
    assert config["network"] == {"name": "ResNet", "args": config["network"]["args"]}
    assert config["recipe"]["trainer"]["max_epochs"] == 3
    assert config["run"]["seed"] == 0
    assert config["run"]["versions"]["torch"] == version("torch")
    text = (folder / "README.md").read_text()
    assert f"{config['metrics']['test/accuracy']:.2%}" in text
    assert "Mean of 2 seeds" in text
    assert config["weights_sha256"] in text

    model = zoo.load(folder)
    last = zoo.load(runs / "version_0/checkpoints/last.ckpt")
    images = torch.randn(2, 1, 8, 8)
    assert torch.equal(model(images), last(images))
    assert zoo_cli("verify", str(folder)).code == 0
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    refused = zoo_cli("verify", str(folder))
    assert refused.code == 2
    assert "truncated or altered" in refused.err


def test_what_is_no_finished_run_is_refused(zoo_cli) -> None:
    Path("runs").mkdir()
    result = zoo_cli("publish", "runs", "--name", "x", "--to", "out")
    assert result.code == 2
    assert "not the folder of a finished fit" in result.err
    assert not Path("out").exists()


def test_runs_of_different_recipes_have_no_common_mean(zoo_cli) -> None:
    assert zoo_cli(*SHORT).code == 0
    assert zoo_cli(*SHORT, "--model.lr", "0.01").code == 0
    result = zoo_cli(
        *("publish", "runs/resnet_digits/version_0", "--name", "x", "--to", "out"),
        *("--seeds", "runs/resnet_digits/version_1"),
    )
    assert result.code == 2
    assert "another recipe" in result.err
    assert not Path("out").exists()
