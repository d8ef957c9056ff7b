from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

import zoo
from tests.conftest import needs_fashion_mnist
from tests.hub import serving
from zoo import registry
from zoo.checkpoints.card import Card
from zoo.commands import publish
from zoo.core.files import sha256
from zoo.data import FashionMNIST
from zoo.evaluation import generator

SHORT = (
    "fit",
    "--recipe",
    "resnet_digits",
    "--model.network.width",
    "8",
    "--trainer.max_epochs",
    "3",
)


@pytest.mark.parametrize("name", registry.TASKS)
def test_every_name_of_a_tasks_entry_is_there(name: str) -> None:
    entry = registry.TASKS[name]
    assert registry.load(entry.task).__name__ == name
    assert issubclass(registry.load(entry.card), Card)
    assert callable(registry.load(entry.measure))


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
    assert manifest["tiny/model.safetensors"] == sha256(folder / "model.safetensors")

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
    # Only what the project ships has a name and a recipe of its own.
    assert 'zoo.load("path/to/tiny")' in text
    assert "`python -m zoo uncertainty --weights path/to/tiny`" in text
    assert "Whoever trained them chooses the license." in text
    assert ModelCard(text).data.license == "other"

    model = zoo.load(folder)
    last = zoo.load(runs / "version_0/checkpoints/last.ckpt")
    images = torch.randn(2, 1, 8, 8)
    assert torch.equal(model(images), last(images))
    told = zoo_cli("verify", str(folder), "--metrics")
    assert told.code == 0, told.out
    assert "figures measured as stated" in told.out
    assert "not measured, of training: run, seeds, global_step" in told.out
    config["metrics"] |= {"test/accuracy": 0.5, "test/auroc": 0.9}
    (folder / "config.json").write_text(json.dumps(config))
    told = zoo_cli("verify", str(folder), "--metrics")
    assert told.code == 1
    assert f"{folder}: metrics.test/accuracy is stated as 0.5 and measured as 0." in told.out
    assert f"{folder}: not measured: metrics.test/auroc\n" in told.out
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    refused = zoo_cli("verify", str(folder))
    assert refused.code == 2
    assert "truncated or altered" in refused.err


def test_a_checkpoint_is_calibrated_anew_and_its_weights_stay(zoo_cli) -> None:
    assert zoo_cli(*SHORT).code == 0
    run = ("publish", "runs/resnet_digits/version_0", "--name", "tiny", "--to", "out")
    assert zoo_cli(*run).code == 0
    folder = Path("out/tiny")
    config = json.loads((folder / "config.json").read_text())
    assert set(config["calibration"]["sets"]) == {"aps", "lac"}
    after = config["proof"]["calibration"]["after"]
    assert after["nll"] < config["proof"]["calibration"]["before"]["nll"]
    text = (folder / "README.md").read_text()
    assert f"| calibrated | {after['accuracy']:.2%} | {after['nll']:.4f} |" in text
    assert f"temperature {config['calibration']['temperature']:.4f}" in text

    stripped = {key: value for key, value in config.items() if key != "calibration"}
    (folder / "config.json").write_text(json.dumps(stripped))
    before = sha256(folder / "model.safetensors")
    done = zoo_cli("publish", "--calibrate", "tiny", "--to", "out")
    assert (done.code, done.out) == (0, "calibrated: out/tiny\n"), done.err
    assert json.loads((folder / "config.json").read_text()) == config
    assert (folder / "README.md").read_text() == text
    assert sha256(folder / "model.safetensors") == before
    listed = json.loads(Path("out/MANIFEST.json").read_text())
    assert listed["tiny/config.json"] == sha256(folder / "config.json")
    for arguments, message in (
        (("--calibrate", "nowhere", "--to", "out"), "there is no checkpoint out/nowhere"),
        (("--calibrate", "tiny", "--name", "tiny", "--to", "out"), "NAME and --to only"),
        (("--calibrate", "transformer_shakespeare"), "not a classifier"),
        ((), "publish needs RUN --name NAME, or --calibrate NAME"),
    ):
        refused = zoo_cli("publish", *arguments)
        assert (refused.code, refused.err.count("\n")) == (2, 1)
        assert message in refused.err


def test_what_is_uploaded_loads_by_its_name(zoo_cli, monkeypatch) -> None:
    assert zoo_cli(*SHORT, "--trainer.max_epochs", "1").code == 0
    run = ("publish", "runs/resnet_digits/version_0", "--name", "tiny", "--to", "out")
    refused = zoo_cli(*run, "--push_to_hub", "net")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "--push_to_hub 'net': give USER/NAME" in refused.err
    assert not Path("out").exists()
    images = torch.randn(2, 1, 8, 8)
    with serving(Path("net").absolute(), monkeypatch) as address:
        done = zoo_cli(*run, "--push_to_hub", "user/net")
        assert done.code == 0, done.err
        assert f"uploaded: {address}/user/net/commit/" in done.out
        there = {file.name: file.read_bytes() for file in Path("net").iterdir()}
        assert there == {file.name: file.read_bytes() for file in Path("out/tiny").iterdir()}
        assert torch.equal(zoo.load("hf-hub:user/net")(images), zoo.load("out/tiny")(images))

        # Without a login, and without a hub: the folder stays, one line says the rest.
        monkeypatch.delenv("HF_TOKEN")
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "no-token")
        refused = zoo_cli(*run, "--push_to_hub", "user/net")
    down = zoo_cli(*run, "--push_to_hub", "user/net")
    for result in (refused, down):
        assert (result.code, result.err.strip().count("\n")) == (2, 0)
        assert "out/tiny is published, but was not uploaded to user/net: " in result.err


@pytest.mark.slow
@needs_fashion_mnist
def test_a_gans_temperatures_are_chosen_before_it_is_measured(zoo_cli, monkeypatch) -> None:
    done = zoo_cli(
        *("fit", "--recipe", "gan_fmnist", "--data.fallback", "null", "--trainer.max_epochs", "1"),
        *("--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1"),
        *("--model.network.generator_width", "8", "--model.network.discriminator_width", "8"),
    )
    assert done.code == 0, done.err
    own = [1.0, 1.1] * 5
    # All images and ten thousand samples at seven temperatures take minutes: here are a few, and
    # tests/evaluation/test_generator.py has the choice itself.
    measure, plain = generator.measure_samples, FashionMNIST.plain
    monkeypatch.setattr(generator, "temperatures", lambda task, data, classifier: list(own))
    monkeypatch.setattr(generator, "measure_samples", lambda *given: measure(*given, count=500))
    monkeypatch.setattr(FashionMNIST, "plain", lambda *given: islice(plain(*given), 2))
    run = "runs/gan_fmnist/version_0"
    result = zoo_cli("publish", run, "--name", "gan_fmnist", "--to", "out", "--temperatures")
    assert result.code == 0, result.err
    config = json.loads(Path("out/gan_fmnist/config.json").read_text())
    assert config["task"]["args"]["temperature"] == config["judged"]["temperature"] == own
    assert config["recipe"]["model"]["init_args"]["temperature"] == own
    assert zoo.load("out/gan_fmnist").temperature == own
    card = Path("out/gan_fmnist/README.md").read_text()
    stated = "order, 1, 1.1, 1, 1.1, 1, 1.1, 1, 1.1, 1, 1.1, chosen on training images by the same"
    assert stated in card


def test_temperatures_are_a_gans_and_need_a_reference_classifier(zoo_cli) -> None:
    assert zoo_cli(*SHORT).code == 0
    run = ("publish", "runs/resnet_digits/version_0", "--name", "x", "--to", "out")
    result = zoo_cli(*run, "--temperatures")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "--temperatures is for a GAN, and the run is of ImageClassifier" in result.err
    gan = ("fit", "--recipe", "gan_digits", "--trainer.max_epochs", "1")
    assert zoo_cli(*gan, "--model.network.generator_width", "8").code == 0
    result = zoo_cli("publish", "runs/gan_digits/version_0", "--name", "x", "--to", "out")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "no shipped classifier measures generated images of Digits" in result.err
    assert not Path("out").exists()


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


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    """A folder of checkpoints with one file in one of them."""
    (tmp_path / "shipped/tiny").mkdir(parents=True)
    (tmp_path / "shipped/tiny/file").write_text("former")
    return tmp_path / "shipped"


KILLED = """
import os, signal, sys
from pathlib import Path
from zoo.commands import publish

calls = 0
def watch(event, arguments):
    global calls
    if event == "os.rename":
        calls += 1
        if calls == int(sys.argv[2]):
            os.kill(os.getpid(), signal.SIGKILL)

with publish._published_whole(Path(sys.argv[1]), "tiny") as fresh:
    fresh.mkdir()
    (fresh / "file").write_text("new")
    sys.addaudithook(watch)
"""


@pytest.mark.parametrize("rename", [1, 2, 3])
def test_killed_at_any_rename_it_leaves_a_whole_folder(shipped: Path, rename: int) -> None:
    subprocess.run([sys.executable, "-c", KILLED, str(shipped), str(rename)], check=False)
    assert (shipped / "tiny/file").read_text() in ("former", "new")
    with publish._published_whole(shipped, "tiny") as fresh:  # and the next one goes through
        fresh.mkdir()
        (fresh / "file").write_text("third")
    assert {path.name for path in shipped.iterdir()} == {"tiny", "MANIFEST.json"}
    assert (shipped / "tiny/file").read_text() == "third"
    listed = json.loads((shipped / "MANIFEST.json").read_text())
    assert listed == {"tiny/file": sha256(shipped / "tiny/file")}


def test_where_folders_cannot_be_exchanged_they_are_renamed(shipped: Path, monkeypatch) -> None:
    monkeypatch.setattr("zoo.core.files.exchange", lambda *_: False)
    with publish._published_whole(shipped, "tiny") as fresh:
        fresh.mkdir()
        (fresh / "file").write_text("new")
    assert (shipped / "tiny/file").read_text() == "new"
    assert {path.name for path in shipped.iterdir()} == {"tiny", "MANIFEST.json"}


def test_what_fails_before_the_end_leaves_the_former_one(shipped: Path) -> None:
    def fail() -> None:
        with publish._published_whole(shipped, "tiny") as fresh:
            fresh.mkdir()
            raise OSError("no")

    with pytest.raises(OSError, match="no"):
        fail()
    assert [path.name for path in shipped.iterdir()] == ["tiny"]
    assert (shipped / "tiny/file").read_text() == "former"


@pytest.mark.parametrize("name", ["../../outside", "a/b", ".hidden", "..", ""])
def test_a_name_is_that_of_a_folder(zoo_cli, name: str) -> None:
    result = zoo_cli("publish", "runs", f"--name={name}", "--to", "out")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert "--name" in result.err


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("run.json", "[]", "run.json: its content is [], expected an object"),
        ("run.json", "{", "run.json: not JSON"),
        ("run.json", '{"data": {}}', "run.json: metrics is missing"),
        ("config.yaml", "model: {}", "config.yaml: data is missing"),
        ("config.yaml", "[", "config.yaml:1: not YAML"),
    ],
)
def test_a_damaged_run_is_reported(zoo_cli, file: str, text: str, message: str) -> None:
    Path("runs/checkpoints").mkdir(parents=True)
    facts = {"data": {}, "metrics": {}, "seed": 0, "wall_time_s": 1.0}
    Path("runs/run.json").write_text(json.dumps(facts))
    Path("runs/config.yaml").write_text("{}")
    Path("runs/checkpoints/last.ckpt").touch()
    Path("runs", file).write_text(text)
    result = zoo_cli("publish", "runs", "--name", "x", "--to", "out")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert message in result.err
