from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from safetensors.torch import load_file
from torch import nn

import zoo
from tests.conftest import needs_fashion_mnist, needs_shakespeare
from zoo.checkpoints import store
from zoo.checkpoints.card import card
from zoo.commands.verify import golden_difference
from zoo.data import FashionMNIST, Shakespeare
from zoo.errors import UserError
from zoo.recipes import shipped_folder
from zoo.tasks import ImageClassifier

SHIPPED = shipped_folder("checkpoints")
every_checkpoint = pytest.mark.parametrize("name", store.names())


# What the shipped weights must reach on FashionMNIST's test images.
FLOORS = {
    "convnet_fmnist": 0.940,
    "efficientnet_fmnist": 0.940,
    "resnet_fmnist": 0.948,
    "vit_fmnist": 0.935,
}


# And on the last tenth of tiny-shakespeare, in nats a character: at most.
CEILINGS = {"transformer_shakespeare": 1.47}


def test_what_is_promised_is_shipped() -> None:
    assert {*FLOORS, *CEILINGS} <= set(store.names())


@every_checkpoint
def test_outputs_are_the_stored_ones(name: str) -> None:
    assert golden_difference(name) < 1e-3


@every_checkpoint
def test_the_card_is_what_the_configuration_says(name: str) -> None:
    config = store.read_config(SHIPPED / name)
    assert (SHIPPED / name / "README.md").read_text(encoding="utf-8") == card(config)
    assert config["recipe"]["data"]["init_args"].get("fallback") is None
    assert "instead_of" not in config["data"]


@every_checkpoint
def test_the_manifest_lists_every_file(name: str) -> None:
    listed = {key for key in store.manifest() if key.startswith(f"{name}/")}
    assert listed == {f"{name}/{path.name}" for path in (SHIPPED / name).iterdir()}


@every_checkpoint
def test_weights_are_plain_and_the_whole_model(name: str) -> None:
    model = zoo.load(name)
    assert not model.training
    weights = load_file(SHIPPED / name / "model.safetensors")
    assert weights.keys() == model.network.state_dict().keys()
    for key, tensor in model.network.state_dict().items():
        assert torch.equal(tensor.contiguous(), weights[key])


@needs_fashion_mnist
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name == "resnet_fmnist" else [pytest.mark.slow])
        for name in FLOORS
    ],
)
def test_a_shipped_classifier_has_the_accuracy_its_card_states(name: str) -> None:
    """Loaded in one line, on the real test set."""
    model = zoo.load(name)
    trainer = Trainer(logger=False, enable_progress_bar=False, enable_model_summary=False)
    (result,) = trainer.test(model, datamodule=FashionMNIST(), verbose=False)
    stated = store.read_config(SHIPPED / name)["metrics"]
    # A different sum order may turn a tie: at most two of 10,000 images.
    assert result["test/accuracy"] == pytest.approx(stated["test/accuracy"], abs=2.1e-4)
    assert result["test/loss"] == pytest.approx(stated["test/loss"], abs=1e-4)
    assert stated["test/accuracy"] >= FLOORS[name]


@needs_shakespeare
@pytest.mark.parametrize("name", CEILINGS)
def test_a_shipped_language_model_has_the_loss_its_card_states(name: str) -> None:
    model, stated = zoo.load(name), store.read_config(SHIPPED / name)
    data = Shakespeare(**stated["recipe"]["data"]["init_args"])
    data.prepare_data()
    data.setup("fit")
    (sweep,) = data.val_dataloader()
    total = characters = 0.0
    for starts, _ in sweep:
        tokens, targets = data.windows(starts, "val")
        with torch.inference_mode():
            logits = model(tokens)
        total += nn.functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), reduction="sum"
        ).item()
        characters += (targets >= 0).sum().item()
    assert total / characters == pytest.approx(stated["metrics"]["val/loss"], abs=1e-4)
    assert stated["metrics"]["val/loss"] <= CEILINGS[name]


@pytest.mark.slow
@needs_fashion_mnist
def test_the_command_line_tests_the_shipped_weights_by_default(zoo_cli) -> None:
    result = zoo_cli("test", "--recipe", "resnet_fmnist", "--trainer.precision", "32-true")
    assert result.code == 0, result.err
    stated = store.read_config(SHIPPED / "resnet_fmnist")["metrics"]["test/accuracy"]
    text = Path("runs/resnet_fmnist/version_0/metrics.csv").read_text()
    header, values = (line.split(",") for line in text.strip().splitlines()[:2])
    found = float(dict(zip(header, values, strict=True))["test/accuracy"])
    assert found == pytest.approx(stated, abs=2.1e-4)
    other = zoo_cli("test", "--recipe", "resnet_fmnist", "--model.network.width", "8")
    assert other.code == 2
    assert "width 32 there and 8 here" in other.err


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SHIPPED / "resnet_fmnist", tmp_path / "copy"))


def test_a_folder_loads_as_well(copied: Path) -> None:
    images = torch.randn(2, 1, 28, 28)
    assert torch.equal(zoo.load(copied)(images), zoo.load("resnet_fmnist")(images))


@pytest.mark.parametrize("damage", ["altered", "truncated", "missing"])
def test_damaged_weights_are_never_loaded(copied: Path, damage: str) -> None:
    path = copied / "model.safetensors"
    content = bytearray(path.read_bytes())
    if damage == "altered":
        content[-1] ^= 1
        path.write_bytes(content)
    elif damage == "truncated":
        path.write_bytes(content[:-100])
    else:
        path.unlink()
    with pytest.raises(UserError, match=r"model\.safetensors is (truncated or altered|missing)"):
        zoo.load(copied)


def test_the_manifest_guards_shipped_checkpoints(monkeypatch, tmp_path: Path) -> None:
    shutil.copytree(SHIPPED, tmp_path / "checkpoints")
    monkeypatch.setattr(store, "shipped_folder", lambda _: tmp_path / "checkpoints")
    config = tmp_path / "checkpoints/resnet_fmnist/config.json"
    config.write_text(config.read_text().replace('"seed"', '"sede"', 1))
    with pytest.raises(UserError, match=r"config\.json is truncated or altered"):
        zoo.load("resnet_fmnist")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("resnet_fmnits", "did you mean 'resnet_fmnist'"),
        ("nowhere.ckpt", "no such checkpoint"),
        (".", "it is not a checkpoint"),
    ],
)
def test_a_wrong_name_is_reported(monkeypatch, tmp_path: Path, source: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        zoo.load(source)


def test_a_configuration_names_no_import_path(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    config["network"]["name"] = "os.system"
    (copied / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="no network named"):
        zoo.load(copied)


def test_a_new_head_and_more_channels_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        model = zoo.load("resnet_fmnist", num_classes=3, in_channels=3)
    table = [" ".join(line.split()) for line in caplog.text.splitlines()]
    assert "fc.weight, fc.bias new 3 classes, where there were 10" in table
    assert "conv1.weight adapted from 1 to 3 input channels" in table
    assert "zoo.load: weights of resnet_fmnist:" in caplog.text  # as they were asked for
    original = zoo.load("resnet_fmnist")
    gray = torch.randn(2, 1, 28, 28)
    features = model.network.forward_features(gray.repeat(1, 3, 1, 1))
    torch.testing.assert_close(
        features, original.network.forward_features(gray), rtol=1e-4, atol=1e-4
    )
    assert model(torch.randn(2, 3, 28, 28)).shape == (2, 3)
    assert model.network.config["num_classes"] == 3
    assert model.network.config["in_channels"] == 3
    assert len(model.data_info["mean"]) == 3


def test_a_fine_tuned_model_is_saved_and_loaded_again(tmp_path: Path) -> None:
    model = zoo.load("resnet_fmnist", num_classes=10)
    from zoo.data import Digits

    trainer = Trainer(
        default_root_dir=tmp_path,
        max_steps=2,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(zoo.freeze(model), datamodule=Digits(image_size=28))
    trainer.save_checkpoint(tmp_path / "tuned.ckpt", weights_only=False)
    again = zoo.load(tmp_path / "tuned.ckpt")
    assert isinstance(again, ImageClassifier)
    images = torch.randn(2, 1, 28, 28)
    assert torch.equal(again(images), model.eval()(images))
    assert again.data_info["name"] == "Digits"


@needs_fashion_mnist
def test_every_channel_of_the_shipped_convnet_is_active_on_some_image() -> None:
    """Former weights had 85 of the last convolution's 192 channels at zero throughout."""
    task, data = zoo.load("convnet_fmnist"), FashionMNIST()
    images = data.normalize(next(data.plain("test", 2000))[0])
    largest: dict[str, torch.Tensor] = {}

    def look(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: torch.Tensor) -> None:
            seen = output.amax((0, 2, 3))
            largest[name] = torch.maximum(seen, largest.get(name, seen))

        return hook

    for name, module in task.network.named_modules():
        if isinstance(module, nn.ReLU) and name.startswith("stages"):
            module.register_forward_hook(look(name))
    with torch.inference_mode():
        for part in images.split(500):
            task.network(part)
    assert len(largest) == 6
    assert all((seen > 0).all() for seen in largest.values())
