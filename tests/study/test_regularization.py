from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

import zoo
from zoo import networks, recipes
from zoo.errors import UserError
from zoo.study import catalog, regularization
from zoo.study.progress import Display
from zoo.study.regularization import BEYOND, EXPERIMENTS, STUDIES, Plan, folder_of, measure
from zoo.study.report import write_report
from zoo.study.shift import REPAIRED, SHIFT
from zoo.study.statements import judge_all

from ..conftest import needs_fashion_mnist

TINY = """
base: convnet_digits
model:
  init_args:
    network:
      init_args: {size: small, batch_norm: BN, drop_rate: 0.0, spatial_drop_rate: 0.0}
    ema_decay: null
"""


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    experiments = {}
    for number, norm in ((1, "false"), (2, "true")):
        path = tmp_path / f"{number}_tiny.yaml"
        path.write_text(TINY.replace("BN", norm))
        experiments[number] = str(path)
    return Plan("tiny", "TINY FORM", 1, ("--trainer.max_epochs", "2"), experiments)


def test_a_finished_run_is_never_repeated_and_a_report_is_written(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, runs = tmp_path / "out", tmp_path / "runs"
    found = measure(plan, out, runs)
    assert [len(members) for members in found.values()] == [1, 1]
    result = json.loads((folder_of(plan, out) / "1_tiny-seed0.json").read_text())
    assert result["test_images"] == 360
    assert {len(result["curves"][name]) for name in ("val/loss", "train_eval/accuracy")} == {2}
    assert SHIFT not in result["curves"]  # it has no BatchNorm
    shift = {name: found[2][0].final(name) for name in (SHIFT, REPAIRED)}
    assert shift == pytest.approx({SHIFT: 1.0, REPAIRED: 1.0}, abs=0.02)  # and no dropout

    monkeypatch.setattr(regularization, "_fit", lambda *_: pytest.fail("was fitted again"))
    again = measure(plan, out, runs)
    for name, values in found[2][0].curves.items():
        assert again[2][0].curves[name] == pytest.approx(values, abs=1e-5)

    judged = judge_all(again)
    assert [one.experiment for one in judged] == [2]
    page = write_report(plan.label, plan.seeds, again, judged, folder_of(plan, out))
    text = page.read_text()
    assert text.count("data:image/png;base64,") == 2
    assert "http" not in text  # nothing is fetched: the page is whole
    assert "TINY FORM, 1 seed" in text
    assert text.count("<table>") == 2
    assert "What dropout does to BatchNorm" in text
    assert "TINY FORM, 1 seed" in (page.parent / "README.md").read_text()

    Path(plan.experiments[1]).write_text(TINY.replace("BN", "true"))
    with pytest.raises(UserError, match="was measured with other settings"):
        measure(plan, out, runs)


def test_a_run_that_was_stopped_goes_on_where_it_was(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = replace(
        plan, overrides=("--trainer.max_epochs", "3"), experiments={1: plan.experiments[1]}
    )
    whole = measure(plan, tmp_path / "whole", tmp_path / "other")[1][0]
    count = Display.on_train_epoch_end

    def stop(self: Display, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == 1:
            raise KeyboardInterrupt
        count(self, trainer, pl_module)

    monkeypatch.setattr(Display, "on_train_epoch_end", stop)
    with pytest.raises(SystemExit):
        measure(plan, tmp_path / "out", tmp_path / "runs")
    assert not list((tmp_path / "out").rglob("*.json"))
    monkeypatch.setattr(Display, "on_train_epoch_end", count)
    resumed = measure(plan, tmp_path / "out", tmp_path / "runs")[1][0]
    (record,) = (tmp_path / "runs").rglob("run.json")  # in the folder where it began
    assert json.loads(record.read_text())["resumed"]
    for name in ("val/loss", "train_eval/loss", "test/accuracy"):
        assert resumed.curves[name] == pytest.approx(whole.curves[name], abs=1e-6)


@needs_fashion_mnist
@pytest.mark.slow
@pytest.mark.parametrize("study", STUDIES)
def test_quick_forms_run_to_their_end(zoo_cli, study: str) -> None:
    done = zoo_cli("study", study, "--quick", "--out", "study")
    assert done.code == 0, done.err
    results = sorted(Path("study", study, "quick").glob("*.json"))
    assert len(results) == len(STUDIES[study])
    assert "QUICK FORM" in Path("study", study, "quick", "README.md").read_text()


def test_every_study_is_a_name_of_the_command() -> None:
    assert set(STUDIES) == set(catalog.EXPERIMENTS)


def test_a_child_names_only_what_its_experiment_adds() -> None:
    base = recipes.resolve(EXPERIMENTS[2])
    network = base["model"]["init_args"]["network"]["init_args"]
    dropout = {"drop_rate": 0.3, "spatial_drop_rate": 0.1, "spatial": "every"}
    augmentation = {"shift": 2, "flip": True}
    expected = {
        1: ({"size": "small"}, {}),
        2: ({}, {}),
        3: ({}, augmentation),
        4: ({"batch_norm": True}, {}),
        5: (dropout, {}),
        6: ({"batch_norm": True, **dropout}, {}),
        7: ({"batch_norm": True, **dropout}, augmentation),
        8: ({"batch_norm": True, "size": "large", **dropout}, augmentation),
    }
    for number, (changed, data) in expected.items():
        recipe = recipes.resolve(EXPERIMENTS[number])
        assert recipe["model"]["init_args"]["network"]["init_args"] == {**network, **changed}
        assert recipe["data"]["init_args"] == {**base["data"]["init_args"], **data}
        assert recipe["trainer"] == base["trainer"]
        ours, bases = recipe["model"]["init_args"], base["model"]["init_args"]
        assert {**ours, "network": None} == {**bases, "network": None}
    assert base["model"]["init_args"]["weight_decay"] == 0
    assert base["model"]["init_args"]["label_smoothing"] == 0


def test_what_is_beyond_adds_one_thing_each() -> None:
    def parts(number: int) -> tuple[dict[str, Any], dict[str, Any]]:
        recipe = recipes.resolve(BEYOND[number])
        network = recipe["model"]["init_args"].pop("network")["init_args"]
        return network, {key: recipe[key] for key in ("model", "data", "trainer")}

    six, rest = parts(6)
    assert parts(9) == ({**six, "order": "drop-first"}, rest)
    assert parts(10) == ({**six, "spatial": "last"}, rest)
    assert parts(12) == ({**parts(4)[0], "order": "act-first"}, rest)
    network, decayed = parts(11)
    assert network == parts(4)[0]
    assert decayed["model"]["init_args"].pop("weight_decay") == 0.05
    assert rest["model"]["init_args"].pop("weight_decay") == 0.0
    assert decayed == rest
    residual, rest = parts(13)
    assert rest == parts(2)[1]
    assert parts(14) == ({**residual, "drop_rate": 0.1}, rest)
    assert parts(15) == ({**residual, "drop_path_rate": 0.2}, rest)


def test_the_audit_names_the_experiments_with_dropout_before_batch_norm() -> None:
    at_fault: dict[str, set[int]] = {}
    for number, recipe in (EXPERIMENTS | BEYOND).items():
        network = recipes.resolve(recipe)["model"]["init_args"]["network"]
        built = getattr(networks, network["class_path"].rsplit(".", 1)[-1])(**network["init_args"])
        for finding in zoo.audit(built, torch.randn(4, 1, 28, 28)).findings:
            at_fault.setdefault(finding.rule, set()).add(number)
    # 10 has it after the last BatchNorm; in 14 and 15 it is by way of a sum.
    assert at_fault["dropout-before-bn"] == {6, 7, 8, 9, 14}
    assert at_fault["stochastic-depth-before-bn"] == {15}
