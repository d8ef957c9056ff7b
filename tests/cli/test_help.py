"""``--help`` of fit, validate, test and predict: what it shows, and that it is true."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import yaml

from zoo.cli.help import help_of
from zoo.cli.options import OPTIONS


def flat(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_our_options_come_before_lightnings(command: str) -> None:
    text = help_of(command, [])
    assert text.startswith(f"usage: python -m zoo {command} --recipe NAME [--KEY VALUE ...]\n")
    ours = [option.flag for option in OPTIONS if command in option.commands]
    assert ours
    for flag in ours:
        assert text.index(f"  {flag} ") < text.index("--model CLASS")
    assert text.index("--model CLASS") < text.index("--trainer.max_epochs null")
    others = {option.flag for option in OPTIONS if command not in option.commands}
    assert not [flag for flag in others if f"  {flag} " in text]


def test_a_recipe_is_shown_with_its_values() -> None:
    text = help_of("fit", ["--recipe", "resnet_digits"])
    keys, further = text.split("further arguments", maxsplit=1)
    assert "keys of resnet_digits" in keys
    for shown in (
        "--model zoo.tasks.ImageClassifier\n",
        "--model.lr 0.02 ",
        "--model.network zoo.networks.ResNet\n",
        "--model.network.layers '[1, 1, 1]'",
        "--data.batch_size 128 ",
        "--trainer.max_epochs 20 ",
    ):
        assert f"  {shown}" in keys
    assert "--model.lr " not in further
    assert "--trainer.min_epochs null" in further
    assert "--trainer.max_epochs" not in further


def test_options_show_the_recipes_values_and_a_child_wins_over_its_base(tmp_path) -> None:
    assert "0.75 [0.75]" in flat(help_of("fit", ["--recipe=finetune_digits"]))
    child = tmp_path / "child.yaml"
    child.write_text("base: finetune_digits\nlayer_decay: 0.5\ntrainer: {max_epochs: 9}\n")
    text = flat(help_of("fit", ["--recipe", str(child)]))
    assert "for example 0.75 [0.5]" in text
    assert "--trainer.max_epochs 9 " in text


def test_the_recipe_must_exist(zoo_cli) -> None:
    result = zoo_cli("fit", "--recipe", "resnet_digit", "--help")
    assert result.code == 2
    assert "no recipe named 'resnet_digit'; did you mean 'resnet_digits'?" in result.err


def test_help_imports_no_torch() -> None:
    code = (
        "import sys\nfrom zoo.__main__ import main\n"
        "code = main(['fit', '--recipe', 'resnet_fmnist', '--help'])\n"
        "sys.exit('imported torch' if 'torch' in sys.modules else code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_key_of_the_help_is_taken_by_the_command_line(zoo_cli) -> None:
    text = help_of("fit", ["--recipe", "resnet_digits"])
    keys = text.split("keys of resnet_digits")[1].split("further arguments")[0]
    typed = [
        word.strip("'")
        for flag, value in re.findall(r"^  (--\S+) ('.+?'|\S+)", keys, re.MULTILINE)
        for word in (flag, value)
    ]
    assert len(typed) > 30
    result = zoo_cli("fit", "--recipe", "resnet_digits", *typed, "--print_config")
    assert result.code == 0, result.err
    config = yaml.safe_load(result.out)
    assert config["model"]["init_args"]["network"]["init_args"]["layers"] == [1, 1, 1]
    assert config["model"]["init_args"]["optimizer"] == "muon"


def test_a_class_is_described_by_its_own_arguments(zoo_cli) -> None:
    result = zoo_cli("fit", "--model.network.help", "UNet")
    assert result.code == 0
    assert result.out.startswith("usage: python -m zoo fit --model.network zoo.networks.UNet ")
    assert "  --model.network.drop_rate 0.5\n" in result.out
    assert "  --model.network (required) " in zoo_cli("test", "--model.help=GAN").out
    names = zoo_cli("fit", "--model.network.help").out
    assert "EfficientNet" in names
    assert "freeze" not in names
    wrong = zoo_cli("fit", "--data.help", "Digit")
    assert wrong.code == 2
    assert "no class named 'Digit' in zoo.data; did you mean 'Digits'?" in wrong.err
