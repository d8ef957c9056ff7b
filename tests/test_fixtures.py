"""Files that an older commit wrote load, give the outputs they gave, and train on.

``tests/fixtures/format1/README.md`` says what they are and how they were made.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

import zoo

FORMAT1 = Path(__file__).parent / "fixtures" / "format1"
OUTPUTS = json.loads((FORMAT1 / "outputs.json").read_text(encoding="utf-8"))
# Another machine sums in another order.
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
FIT = ("--trainer.accelerator", "cpu", "--name", "again")


def outputs(source: Path, inputs: list[list[float]]) -> Tensor:
    task = zoo.load(source)
    assert not task.training
    with torch.no_grad():
        return task(*map(torch.tensor, inputs))


@pytest.mark.parametrize("name", OUTPUTS)
def test_it_loads_and_gives_the_recorded_outputs(name: str) -> None:
    recorded = OUTPUTS[name]
    found = outputs(FORMAT1 / name, recorded["inputs"])
    torch.testing.assert_close(found, torch.tensor(recorded["outputs"]), **CLOSE)


@pytest.mark.parametrize("name", ["vit", "transformer", "gan"])
def test_a_checkpoint_passes_its_own_verification(zoo_cli, name: str) -> None:
    result = zoo_cli("verify", str(FORMAT1 / name))
    assert result.code == 0, result.err
    assert "checksums match" in result.out


@pytest.mark.parametrize("run", ["finished", "gan_fit"])
def test_a_configuration_is_a_recipe(zoo_cli, run: str) -> None:
    recipe = str(FORMAT1 / run / "config.yaml")
    result = zoo_cli("fit", "--recipe", recipe, *FIT, "--trainer.max_epochs", "1")
    assert result.code == 0, result.err
    old = next((FORMAT1 / run).rglob("last.ckpt"))
    new = Path("runs/again/version_0/checkpoints/last.ckpt")
    then, now = (zoo.load(file).network.state_dict() for file in (old, new))
    assert {k: v.shape for k, v in then.items()} == {k: v.shape for k, v in now.items()}


def test_a_killed_fit_goes_on_to_the_recorded_end(zoo_cli) -> None:
    folder = FORMAT1 / "mid_epoch"
    recorded = json.loads((folder / "uninterrupted.json").read_text(encoding="utf-8"))
    result = zoo_cli(
        *("fit", "--recipe", str(folder / "config.yaml"), *FIT),
        *("--ckpt_path", str(folder / "last.ckpt")),
    )
    assert result.code == 0, result.err
    run = Path("runs/again/version_0")
    assert json.loads((run / "run.json").read_text())["steps"] == recorded["metrics"]["step"] + 1
    found = json.loads((run / "run.json").read_text())["metrics"]
    for name in ("train/loss", "train/accuracy", "val/loss", "val/accuracy"):
        assert found[name] == pytest.approx(recorded["metrics"][name], abs=1e-4), name
    final = outputs(run / "checkpoints/last.ckpt", recorded["inputs"])
    torch.testing.assert_close(final, torch.tensor(recorded["outputs"]), **CLOSE)
