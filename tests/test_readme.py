"""What the README shows is run: its commands, its recipe, its Python, and its table."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

import zoo
from tests.conftest import needs_fashion_mnist
from tests.photos import write_photos
from zoo.checkpoints.store import read_config
from zoo.commands.list import table
from zoo.registry import COMMANDS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[list[str]]:
    lines = [line.split("#")[0] for block in blocks("bash") for line in block.splitlines()]
    parts = [part.strip() for line in lines for part in line.split("&&")]
    return [shlex.split(part)[3:] for part in parts if part.startswith("python -m zoo ")]


def test_the_two_commands_are_what_ci_and_strangers_run() -> None:
    first, last = blocks("bash")[0], blocks("bash")[-1]
    assert "pip install -e . && python -m zoo fit --recipe resnet_fmnist" in first
    assert "pip install -e '.[test]' && pytest -m \"not slow\" -n 2" in last
    ci = (ROOT / ".ci/run").read_text()
    assert "pip install --quiet -e '.[test]'" in ci
    assert 'pytest -m "not slow" -n 2' in ci


@needs_fashion_mnist
def test_every_command_works_in_the_order_it_is_shown(zoo_cli) -> None:
    assert {arguments[0] for arguments in commands()} >= {"fit", "test", "predict", "verify"}
    for folder in ("photos", "new_photos"):
        write_photos(Path(folder), each=10, side=32)
    for arguments in commands():
        if arguments[0] == "fit":  # what takes minutes is shortened, nothing else
            limit = ["--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1"]
            arguments = [*arguments, *limit, "--trainer.limit_test_batches", "1"]
            if "--trainer.max_epochs" not in arguments:
                arguments += ["--trainer.max_epochs", "3" if "--ckpt_path" in arguments else "2"]
        if arguments[0] == "uncertainty":
            arguments = [*arguments, "--images", "200"]
        result = zoo_cli(*arguments)
        assert result.code == 0, (arguments, result.err)


def test_commands_in_passing_exist() -> None:
    for command in re.findall(r"python -m zoo (\w+)", README):
        assert command in COMMANDS


def test_names_in_passing_exist() -> None:
    names = set(re.findall(r"\bzoo\.([a-z_]+)\.(\w+)", README))
    assert ("evaluation", "judge") in names
    for room, name in names:
        # Not zoo.ROOM, which any import of that module has set.
        assert hasattr(zoo.__getattr__(room), name), f"zoo.{room}.{name}"


def test_the_recipe_runs(zoo_cli) -> None:
    (recipe,) = blocks("yaml")
    Path("mine.yaml").write_text(recipe)
    result = zoo_cli("fit", "--recipe", "mine.yaml", "--trainer.max_epochs", "1")
    assert result.code == 0, result.err


def test_the_table_is_generated_from_the_cards() -> None:
    shown = re.search(r"<!-- table: .*? -->\n(.*?)\n<!-- end -->", README, flags=re.DOTALL)
    assert shown is not None
    assert shown[1] == table(), "python -m zoo list --markdown prints the table that belongs here"


def test_the_text_is_the_cards() -> None:
    text = read_config(ROOT / "checkpoints/transformer_shakespeare")["text"]
    assert text["made"].startswith(text["prompt"])
    assert text["made"] + "\n" in blocks("text")


def test_loading_in_three_lines() -> None:
    first = blocks("python")[0]
    assert len(first.strip().splitlines()) <= 4
    scope: dict = {}
    exec(first, scope)
    assert scope["logits"].shape == (1, 10)


def test_images_are_made_in_two_lines() -> None:
    (code,) = [block for block in blocks("python") if ".sample(" in block]
    scope: dict = {}
    exec(code, scope)
    assert scope["images"].shape == (2, 1, 28, 28)
    assert 0 <= scope["images"].min() < 0.1
    assert 0.5 < scope["images"].max() <= 1


def test_variance_shift_is_shown_and_mended(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = [block for block in blocks("python") if "variance_shift" in block]
    exec(code, {})
    tables = [line.split() for line in capsys.readouterr().out.splitlines() if line[:2] == "4 "]
    (_, ratio, before, *_), (_, again, after, *_) = tables
    assert float(ratio) == pytest.approx(float(again), rel=0.05)
    assert float(ratio) > 1.5
    assert float(before) > 1.4
    assert float(after) == pytest.approx(1, abs=0.01)


def test_mc_dropout_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = [block for block in blocks("python") if "mc_dropout" in block]
    exec(code, {})
    assert "torch.Size([32, 10])" in capsys.readouterr().out


def test_fine_tuning_beats_training_from_scratch_by_fifteen_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FashionMNIST weights, ten labeled digits a class, the README's own lines."""
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    (code,) = [block for block in blocks("python") if "fine_tuned" in block]
    exec(code, scope)
    assert scope["fine_tuned"] > scope["from_scratch"] + 0.15


def test_a_linear_probe_is_shown() -> None:
    scope: dict = {}
    (code,) = [block for block in blocks("python") if "linear_probe" in block]
    exec(code, scope)
    assert scope["probe"].accuracy > 0.8
