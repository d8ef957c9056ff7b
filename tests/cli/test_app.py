"""The command line, in-process, on the digits: what a run writes and how it refuses."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
import torch
import yaml

import zoo
from tests.conftest import needs_fashion_mnist
from tests.data.test_image_folder import paint
from zoo import recipes
from zoo.cli import trainer

DIGITS = ("--recipe", "resnet_digits", "--model.network.width", "8")
SHORT = ("fit", *DIGITS, "--trainer.max_epochs", "2")


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_run_leaves_everything_behind(zoo_cli) -> None:
    result = zoo_cli(*SHORT)
    assert result.code == 0, result.err
    run = Path("runs/resnet_digits/version_0")
    assert {path.name for path in run.iterdir()} >= {
        "config.yaml",
        "metrics.csv",
        "checkpoints",
        "curves.png",
        "summary.txt",
        "run.json",
    }
    kept = {f"{name}.ckpt{suffix}" for name in ("best", "last") for suffix in ("", ".sha256")}
    assert {p.name for p in (run / "checkpoints").iterdir()} == kept
    assert {"train/loss", "val/loss", "val/accuracy", "test/accuracy", "lr"} <= set(
        rows(run / "metrics.csv")[0]
    )
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["init_args"]["network"]["init_args"]["width"] == 8
    assert config["trainer"]["max_epochs"] == 2
    facts = json.loads((run / "run.json").read_text())
    assert facts["command"].startswith("python -m zoo fit --recipe resnet_digits")
    assert facts["metrics"]["test/accuracy"] > 0.1
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (run / "summary.txt").read_text() in result.out

    # The summary's last lines are Python that loads the result: they are run.
    lines = result.out.strip().splitlines()
    start = lines.index("import zoo")
    images = torch.randn(2, 1, 8, 8)
    scope = {"images": images}
    exec("\n".join(lines[start:]), scope)
    assert scope["logits"].shape == (2, 10)

    # A second run does not touch the first.
    assert zoo_cli(*SHORT, "--test_after_fit", "false").code == 0
    second = Path("runs/resnet_digits/version_1/metrics.csv")
    assert "test/accuracy" not in rows(second)[0]


def test_one_epoch_line_in_a_log_file(zoo_cli) -> None:
    lines = [line for line in zoo_cli(*SHORT).out.splitlines() if line.startswith("epoch ")]
    assert len(lines) == 2
    assert "val/accuracy" in lines[0]
    assert "left" in lines[0]


def test_the_run_is_named_by_the_last_recipe_or_by_name(zoo_cli, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "base: resnet_digits\nmodel: {init_args: {network: {init_args: {width: 4}}}}\n"
    )
    short = ("--trainer.limit_train_batches", "2", "--trainer.max_epochs", "1")
    assert zoo_cli("fit", "--recipe", "mine.yaml", *short).code == 0
    config = yaml.safe_load(Path("runs/mine/version_0/config.yaml").read_text())
    assert config["model"]["init_args"]["network"]["init_args"]["width"] == 4
    assert config["model"]["init_args"]["optimizer"] == "muon"
    assert zoo_cli("fit", "--config", "mine.yaml", "--name", "other", *short).code == 0
    assert Path("runs/other/version_0/config.yaml").is_file()
    # What is saved is itself a recipe.
    again = ("fit", "--recipe", "runs/mine/version_0/config.yaml", "--name", "again")
    assert zoo_cli(*again).code == 0


def test_print_config_shows_the_resolved_recipe(zoo_cli) -> None:
    result = zoo_cli("fit", *DIGITS, "--print_config")
    assert result.code == 0
    config = yaml.safe_load(result.out)
    assert config["model"]["init_args"]["network"]["init_args"]["width"] == 8
    assert not Path("runs").exists()


def test_null_takes_back_what_a_recipe_gives_a_network(zoo_cli, tmp_path: Path) -> None:
    network = "model: {init_args: {network: {init_args: {feature_size: 24}}}}"
    (tmp_path / "mine.yaml").write_text(f"base: gan_digits\n{network}\n")
    fit = ("fit", "--recipe", "mine.yaml", "--print_config")
    option = "--model.network.init_args.feature_size"
    for typed, size in (((), 24), ((option, "null"), None), ((f"{option}=null",), None)):
        result = zoo_cli(*fit, *typed)
        assert result.code == 0, result.err
        network = yaml.safe_load(result.out)["model"]["init_args"]["network"]
        assert network["init_args"]["feature_size"] == size


def test_test_and_validate_and_predict_take_last_best_or_a_file(zoo_cli) -> None:
    assert zoo_cli(*SHORT).code == 0
    file = "runs/resnet_digits/version_0/checkpoints/best.ckpt"
    expected = json.loads(Path("runs/resnet_digits/version_0/run.json").read_text())["metrics"]
    last = zoo_cli("test", *DIGITS, "--ckpt_path", "last")
    assert last.code == 0, last.err
    found = rows(Path("runs/resnet_digits/version_1/metrics.csv"))
    assert float(found[-1]["test/accuracy"]) == pytest.approx(expected["test/accuracy"])
    assert re.search(rf"^  test/accuracy +{expected['test/accuracy']:.2%}$", last.out, re.M)
    assert zoo_cli("validate", *DIGITS, "--ckpt_path", file).code == 0
    found = rows(Path("runs/resnet_digits/version_2/metrics.csv"))
    assert float(found[-1]["val/accuracy"]) == pytest.approx(expected["val/accuracy"])
    assert zoo_cli("predict", *DIGITS, "--ckpt_path", "best").code == 0
    predictions = rows(Path("runs/resnet_digits/version_3/predictions.csv"))
    assert [int(row["index"]) for row in predictions] == list(range(360))
    assert set(predictions[0]) == {"index", "label", "confidence", *map(str, range(10))}


def test_fit_goes_on_in_the_same_folder(zoo_cli) -> None:
    assert zoo_cli(*SHORT).code == 0
    longer = zoo_cli("fit", *DIGITS, "--trainer.max_epochs", "4", "--ckpt_path", "last")
    assert longer.code == 0, longer.err
    assert [path.name for path in Path("runs/resnet_digits").iterdir()] == ["version_0"]
    found = rows(Path("runs/resnet_digits/version_0/metrics.csv"))
    epochs = [float(row["epoch"]) for row in found if row["val/accuracy"]]
    assert epochs == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--recipe", "resnet_digit"], "did you mean 'resnet_digits'?"),
        ([*DIGITS, "--trainer.max_epoch", "1"], "did you mean 'trainer.max_epochs'?"),
        ([*DIGITS, "--model.network.widht", "8"], "did you mean 'width'?"),
        ([*DIGITS, "--model.network.width", "wide"], "model.network.width: Expected a int"),
        ([*DIGITS, "--model.network.block", "basci"], "did you mean 'basic'?"),
        ([*DIGITS, "--model.optimizer", "moun"], "did you mean 'muon'?"),
        ([*DIGITS, "--model", "zoo.tasks.ImageClasifier"], "did you mean 'ImageClassifier'?"),
        ([*DIGITS, "--data.batch_size", "0"], "data.batch_size is 0"),
        ([*DIGITS, "--data.batch_size", "5000"], "has only 1,257 images"),
        ([*DIGITS, "--model.network.layers", "[0]"], "at least one block"),
        ([*DIGITS, "--model.network.in_channels", "3"], "does not take images of 1 × 8 × 8"),
        ([*DIGITS, "--model.network.num_classes", "9"], "give --model.network.num_classes 10"),
        ([*DIGITS, "--ckpt_path", "lst"], "no such file: lst"),
        ([*DIGITS, "--ckpt_path", "last"], "no run found in runs/resnet_digits"),
        ([*DIGITS, "--ckpt_path", "resnet_fmnist"], "shipped weights are not a run to resume"),
        ([*DIGITS, "--trainer.accelerator", "gpu"], "gpu"),
        ([*DIGITS, "--trainer.max_time", "soon"], "duration='soon'"),
        ([], "give --recipe NAME"),
        (["--model.lr", "1"], "give --recipe NAME before it"),
        (["--recipe", "bad.yaml"], "bad.yaml: Group 'trainer' does not accept option 'max_epoch'"),
        (["--recipe", "nested.yaml"], "nested.yaml: Option 'widht' is not accepted"),
    ],
    ids=lambda value: "_".join(value)[-40:] if isinstance(value, list) else "",
)
def test_bad_input_is_one_line_and_exit_code_two(zoo_cli, arguments, expected) -> None:
    Path("bad.yaml").write_text("base: resnet_digits\ntrainer: {max_epoch: 3}\n")
    Path("nested.yaml").write_text(
        "base: resnet_digits\nmodel: {init_args: {network: {init_args: {widht: 3}}}}\n"
    )
    result = zoo_cli("fit", *arguments)
    assert result.code == 2
    last = result.err.strip().splitlines()[-1]
    assert last.startswith("zoo fit: error: ")
    assert expected in last
    assert "Traceback" not in result.err
    assert not list(Path(".").glob("runs/*/*/checkpoints/*"))


def test_a_checkpoint_of_another_network_is_refused_in_one_line(zoo_cli) -> None:
    assert zoo_cli(*SHORT, "--test_after_fit", "false").code == 0
    result = zoo_cli("test", "--recipe", "resnet_digits", "--ckpt_path", "last")
    assert result.code == 2
    assert "width 8 there and 16 here" in result.err
    advice = result.err.strip().split("--recipe ")[-1]
    assert zoo_cli("test", "--recipe", advice, "--ckpt_path", "last").code == 0


def test_shipped_weights_are_named_and_say_which_recipe_has_their_network(zoo_cli) -> None:
    result = zoo_cli("test", *DIGITS, "--ckpt_path", "resnet_fmnist")
    assert result.code == 2
    assert "holds another network (ResNet: " in result.err
    assert result.err.strip().endswith("or --recipe resnet_fmnist --ckpt_path resnet_fmnist")


@needs_fashion_mnist
def test_a_recipe_of_ones_own_measures_shipped_weights_by_name(zoo_cli, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("base: resnet_fmnist\n")
    few = ["--trainer.limit_test_batches", "2"]
    result = zoo_cli("test", "--recipe", "mine.yaml", "--ckpt_path", "resnet_fmnist", *few)
    assert result.code == 0, result.err
    assert "weights: shipped resnet_fmnist" in result.out


def test_a_broken_checkpoint_is_named(zoo_cli) -> None:
    Path("broken.ckpt").write_bytes(b"not a checkpoint")
    result = zoo_cli("fit", *DIGITS, "--ckpt_path", "broken.ckpt")
    assert result.code == 2
    assert "broken.ckpt is not a readable checkpoint" in result.err


def test_a_recipe_without_weights_says_so(zoo_cli, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("base: resnet_digits\n")
    result = zoo_cli("test", "--recipe", "mine.yaml")
    assert result.code == 2
    assert "ships no weights: give --ckpt_path" in result.err


def test_the_fallback_says_so_where_nobody_can_miss_it(zoo_cli, no_fashion_mnist: Path) -> None:
    short = ["--trainer.max_epochs", "1", "--model.network.width", "4"]
    with pytest.warns(UserWarning, match="TRAINING ON DIGITS INSTEAD"):
        result = zoo_cli("fit", "--recipe", "resnet_fmnist", *short)
    assert result.code == 0, result.err
    run = Path("runs/resnet_fmnist-on-digits/version_0")
    assert {"digits/val/accuracy", "digits/test/accuracy", "digits/train/loss"} <= set(
        rows(run / "metrics.csv")[0]
    )
    assert "TRAINED ON DIGITS, NOT ON FASHIONMNIST" in result.out.strip().splitlines()[-1]
    model = zoo.load(run / "checkpoints" / "last.ckpt")
    assert model.data_info["name"] == "Digits"
    assert model.data_info["instead_of"] == "FashionMNIST"
    assert zoo_cli("publish", str(run), "--name", "resnet_fmnist", "--to", "out").code == 2
    assert not Path("out").exists()

    refused = zoo_cli("fit", "--recipe", "resnet_fmnist", "--data.fallback", "null", *short)
    assert refused.code == 2
    assert "Set ZOO_DATA to a folder" in refused.err
    shipped = zoo_cli("test", "--recipe", "resnet_fmnist")
    assert shipped.code == 2
    assert "set ZOO_DATA" in shipped.err


def test_wandb_offline_beside_the_csv(zoo_cli) -> None:
    result = zoo_cli(*SHORT, "--wandb", "offline", "--test_after_fit", "false")
    assert result.code == 0, result.err
    run = Path("runs/resnet_digits/version_0")
    assert rows(run / "metrics.csv")
    assert list(run.glob("wandb/offline-run-*/*.wandb"))
    # A second run in the same process is a run of its own.
    assert zoo_cli(*SHORT, "--wandb", "offline", "--test_after_fit", "false").code == 0
    assert list(Path("runs/resnet_digits/version_1").glob("wandb/offline-run-*/*.wandb"))


def test_without_validation_there_is_no_best_but_a_last(zoo_cli) -> None:
    result = zoo_cli(*SHORT, "--trainer.limit_val_batches", "0")
    assert result.code == 0, result.err
    kept = {p.name for p in Path("runs/resnet_digits/version_0/checkpoints").iterdir()}
    assert kept == {"last.ckpt", "last.ckpt.sha256"}


def test_a_fit_that_is_refused_leaves_nothing(zoo_cli) -> None:
    # An optimizer is made within the fit, when the run's folder is there already.
    refused = ("--model.optimizer_args.betta", "1")
    result = zoo_cli("fit", *DIGITS, *refused)
    assert (result.code, result.err.splitlines()[-1].count("betta")) == (2, 1)
    assert not Path("runs").exists()
    assert zoo_cli(*SHORT).code == 0
    before = sorted(Path("runs").rglob("*"))
    assert zoo_cli("fit", *DIGITS, *refused).code == 2
    assert zoo_cli(*SHORT, *refused, "--ckpt_path", "last").code == 2
    assert sorted(Path("runs").rglob("*")) == before


def test_fast_dev_run_leaves_nothing(zoo_cli) -> None:
    result = zoo_cli("fit", *DIGITS, "--trainer.fast_dev_run", "2")
    assert result.code == 0, result.err
    assert not Path("runs").exists()


# Of the study's, which differ in a switch each, the one with all of them on.
LEFT_OUT = {name for name in recipes.names() if name.startswith("study/")} - {"study/7_all"}


# Networks of millions of parameters take most of a minute together.
LARGE = {"resnet50_imagefolder", "vit_small_imagefolder", "transformer_shakespeare_long"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in LARGE else [])
        for name in sorted(set(recipes.names()) - LEFT_OUT)
    ],
)
def test_every_recipe_runs_two_batches(zoo_cli, request: pytest.FixtureRequest, name: str) -> None:
    limits = ["--trainer.max_epochs", "1", "--data.batch_size", "16"]
    for stage in ("train", "val", "test"):
        limits += [f"--trainer.limit_{stage}_batches", "2"]
    data = recipes.resolve(name)["data"]["class_path"].removeprefix("zoo.data.")
    if data == "CIFAR10":
        request.getfixturevalue("cifar_files")
        limits += ["--data.validation_size", "40"]
    if data == "ImageFolder":
        for label in ("one", "two"):
            paint(Path("images", label), 25, (9, 9, 9))
        limits += ["--data.folder", "images", "--data.batch_size", "4"]
    result = zoo_cli("fit", "--recipe", name, *limits)
    assert result.code == 0, result.err


@pytest.mark.slow
def test_resnet_digits_reaches_its_97_percent(zoo_cli) -> None:
    assert zoo_cli("fit", "--recipe", "resnet_digits").code == 0
    facts = json.loads(Path("runs/resnet_digits/version_0/run.json").read_text())
    assert facts["metrics"]["test/accuracy"] > 0.97
    assert facts["seed"] == 0


@pytest.mark.slow
@needs_fashion_mnist
def test_three_hundred_steps_on_real_fashion_mnist(zoo_cli) -> None:
    """At half the recipe's width and half its batch, to be quick."""
    result = zoo_cli(
        *("fit", "--recipe", "resnet_fmnist", "--data.fallback", "null"),
        *("--trainer.max_steps", "300", "--trainer.max_epochs", "-1"),
        *("--model.network.width", "16", "--data.batch_size", "128"),
        *("--model.ema_decay", "0.98", "--trainer.limit_train_batches", "150"),
    )
    assert result.code == 0, result.err
    facts = json.loads(Path("runs/resnet_fmnist/version_0/run.json").read_text())
    assert facts["steps"] == 300
    assert facts["metrics"]["test/accuracy"] > 0.85
    assert facts["data"]["name"] == "FashionMNIST"


def test_a_recipe_in_bfloat16_trains_in_float32_where_it_would_be_imitated(
    zoo_cli, monkeypatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("zoo.cli.trainer.lacks_bf16", lambda _: True)
    (tmp_path / "mine.yaml").write_text("base: resnet_digits\ntrainer: {precision: bf16-mixed}\n")
    short = ("fit", "--recipe", "mine.yaml", *SHORT[3:], "--test_after_fit", "false")
    with pytest.warns(UserWarning, match="32-true in place of bf16-mixed"):
        assert zoo_cli(*short).code == 0
    run = Path("runs/mine/version_0")
    assert json.loads((run / "run.json").read_text())["precision"] == "32-true"
    assert "precision: 32-true" in (run / "config.yaml").read_text()

    assert zoo_cli(*short, "--trainer.precision", "bf16-mixed").code == 0
    typed = Path("runs/mine/version_1/run.json")
    assert json.loads(typed.read_text())["precision"] == "bf16-mixed"


@pytest.mark.slow
@needs_fashion_mnist
def test_four_epochs_of_the_main_recipe(zoo_cli) -> None:
    """Twenty minutes on 2 cores with AVX2, a few with avx512_bf16; 93.0 % with seed 0."""
    result = zoo_cli(
        *("fit", "--recipe", "resnet_fmnist", "--data.fallback", "null"),
        *("--trainer.max_epochs", "4", "--model.ema_decay", "0.99"),
    )
    assert result.code == 0, result.err
    facts = json.loads(Path("runs/resnet_fmnist/version_0/run.json").read_text())
    assert facts["metrics"]["test/accuracy"] > 0.91


@pytest.mark.parametrize(("available", "expected"), [(True, "high"), (False, "highest")])
def test_a_cuda_device_multiplies_on_its_tensor_cores(
    available: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_float32_matmul_precision()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    try:
        torch.set_float32_matmul_precision("highest")
        trainer.use_tensor_cores()
        assert torch.get_float32_matmul_precision() == expected
    finally:
        torch.set_float32_matmul_precision(before)
