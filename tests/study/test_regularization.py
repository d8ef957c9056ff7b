from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.utilities.exceptions import SIGTERMException

import zoo
from zoo import networks, recipes
from zoo.commands import study
from zoo.commands.study import stopped, verdicts
from zoo.core.files import write_json, write_text
from zoo.core.locks import held
from zoo.errors import UserError
from zoo.study import catalog, regularization
from zoo.study.progress import Display
from zoo.study.regularization import (
    BEYOND,
    EXPERIMENTS,
    FULL,
    QUICK,
    STUDIES,
    Plan,
    known,
    measure,
    of_study,
    report,
    run,
)
from zoo.study.report import most_accurate, widest_gap
from zoo.study.runs import Run
from zoo.study.shift import REPAIRED, SHIFT

from ..conftest import needs_fashion_mnist
from .test_statements import TOLD

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


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """In place of fits made-up runs; the experiment and the seed of each that was asked for."""
    asked = []

    def fit(plan: Plan, number: int, seed: int, *_: object) -> Run:
        asked.append((number, seed))
        made = TOLD[number if number in TOLD else 3][seed]
        facts = {"wall_time_s": 1.0, "test_images": 100, "hardware": "a machine"}
        return replace(made, facts={**facts, "date": f"2030-01-0{number}"})

    monkeypatch.setattr(regularization, "_fit", fit)
    return asked


def test_a_finished_run_is_never_repeated_and_a_report_is_written(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, runs = tmp_path / "out", tmp_path / "runs"
    assert measure(plan, out, runs) == []
    found = known(plan, out)
    assert [len(members) for members in found.values()] == [1, 1]
    folder = out / "regularization" / "tiny"
    result = json.loads((folder / "1_tiny-seed0.json").read_text())
    assert (result["validation_images"], result["test_images"]) == (180, 360)
    assert {len(result["curves"][name]) for name in ("val/loss", "train_eval/accuracy")} == {2}
    assert SHIFT not in result["curves"]  # it has no BatchNorm
    shift = {name: found[2][0].final(name) for name in (SHIFT, REPAIRED)}
    assert shift == pytest.approx({SHIFT: 1.0, REPAIRED: 1.0}, abs=0.02)  # and no dropout

    monkeypatch.setattr(regularization, "_fit", lambda *_: pytest.fail("was fitted again"))
    assert measure(plan, out, runs) == []
    assert [one.experiment for one in report(plan, out, runs)] == [2]
    text = (folder / "report.html").read_text()
    assert text.count("data:image/png;base64,") == 2
    assert "http" not in text  # nothing is fetched: the page is whole
    assert "TINY FORM, 1 seed" in text
    assert "the validation loss ends at most 0.05 nats above" in text  # a tiny gap
    assert text.count("<table>") == 3
    assert "What dropout does to BatchNorm" in text
    assert "TINY FORM, 1 seed" in (folder / "README.md").read_text()


def test_a_pictures_message_is_what_was_measured() -> None:
    groups = {"1 small": TOLD[1], "4 + BatchNorm": TOLD[4], "7 all three": TOLD[7]}
    assert widest_gap(groups) == (
        "Validation loss ends 0.38 nats above training loss in “4 + BatchNorm”, and 0.01 in "
        "“1 small”"
    )
    assert (
        most_accurate(groups) == "Best in validation: 7 all three (92.5%); worst: 1 small (86.0%)"
    )
    bare = {"x": [Run("x", {}, {}, {})]}
    assert widest_gap(bare) == "Training and validation loss"
    assert most_accurate(bare) == "Training and validation accuracy"


def test_a_result_is_of_the_recipe_as_it_is_overridden(plan: Plan) -> None:
    def asked(*overrides: str) -> str:
        return regularization._asked(replace(plan, overrides=overrides), 2)

    path = Path(plan.experiments[2])
    named = ("--trainer.max_epochs", "3", "--data.batch_size", "17")
    before = asked(), asked(*named)
    assert len({*before, asked("--data.batch_size", "17")}) == 3
    # What an override replaces may change.
    path.write_text(TINY.replace("BN", "true") + "trainer: {max_epochs: 999}\n")
    assert (asked() == before[0], asked(*named) == before[1]) == (False, True)
    path.write_text(TINY.replace("BN", "true") + "    lr: 0.5\n")
    assert asked(*named) != before[1]


def test_other_settings_are_another_run(plan: Plan, tmp_path: Path, fitted: list[Any]) -> None:
    out, runs = tmp_path / "out", tmp_path / "runs"
    measure(replace(plan, experiments={2: plan.experiments[2]}), out, runs)
    Path(plan.experiments[2]).write_text(TINY.replace("BN", "false"))
    assert known(plan, out) == {1: [], 2: []}
    with pytest.raises(UserError, match="2_tiny-seed0"):
        measure(plan, out, runs)
    assert fitted == [(2, 0)]  # it is refused before anything is fitted

    for version, asked in enumerate(("before", "now", "later")):
        write_json(tmp_path / f"fit/version_{version}/run.json", {"asked": asked})
    assert regularization._newest(tmp_path / "fit", "now") == tmp_path / "fit/version_1"
    assert regularization._newest(tmp_path / "fit", "never") is None


def test_two_processes_share_the_runs(
    plan: Plan, tmp_path: Path, fitted: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    out, runs = tmp_path / "out", tmp_path / "runs"
    with held(runs / "regularization/tiny/1_tiny-seed0.lock") as ours:
        assert ours
        assert measure(plan, out, runs) == ["1_tiny-seed0"]
    assert fitted == [(2, 0)]
    page = out / "regularization/tiny/README.md"  # of what is finished
    assert "TINY FORM, 1 seed, 1 of 2 runs" in page.read_text()
    assert measure(plan, out, runs) == []
    assert fitted == [(2, 0), (1, 0)]
    assert "of 2 runs" not in page.read_text()
    assert "a machine, 2030-01-01 to 2030-01-02" in page.read_text()


def test_a_study_says_what_another_process_runs(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(regularization, "measure", lambda *_: ["1_small-seed0"])
    assert run("regularization", True, None, tmp_path / "out", tmp_path / "runs") == 0
    said = capsys.readouterr().out
    assert "another process was running 1_small-seed0" in said
    assert "seeds that are finished: 0 (experiment 1), 0 (experiment 2)" in said


def test_a_lock_goes_with_the_process_that_had_it(tmp_path: Path) -> None:
    code = (
        "import fcntl, sys, time; file = open(sys.argv[1], 'w'); fcntl.flock(file, fcntl.LOCK_EX)"
    )
    code += "; print(flush=True); time.sleep(60)"
    lock = tmp_path / "a.lock"
    command = [sys.executable, "-c", code, str(lock)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with held(lock) as ours:
            assert not ours
        other.kill()
    with held(lock) as ours:
        assert ours


def test_studies_share_the_experiments_that_both_have(tmp_path: Path, fitted: list[Any]) -> None:
    plan = Plan("full", "FORM", 1, (), {2: BEYOND[2], 9: BEYOND[9]}, "beyond")
    out, runs = tmp_path / "out", tmp_path / "runs"
    measure(plan, out, runs)
    assert {path.relative_to(out).as_posix() for path in out.rglob("*.json")} == {
        "regularization/full/2_medium-seed0.json",
        "beyond/full/9_dropout_first-seed0.json",
    }
    assert (out / "beyond/full/report.html").is_file()
    first = Plan("full", "FORM", 1, (), {1: EXPERIMENTS[1], 2: EXPERIMENTS[2]})
    measure(first, out, runs)
    assert fitted == [(2, 0), (9, 0), (1, 0)]


@pytest.mark.parametrize("rows", ["", "epoch,step,val/loss\n0,9,0.5\n1,19,inf\n"])
def test_a_run_that_diverges_is_a_result(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: str
) -> None:
    class Diverging:
        def __init__(self, arguments: list[str], asked: str, display: Display) -> None:
            given = dict(zip(arguments[::2], arguments[1::2], strict=True))
            folder = Path(given["--runs"], given["--name"], "version_0")
            write_json(folder / "run.json", {"asked": asked, "status": "failed", "parameters": 7})
            write_text(folder / "config.yaml", "model: {lr: 9.0}\n")
            write_text(folder / "metrics.csv", rows)
            raise UserError("the training loss is nan at step 20: lower model.lr")

    monkeypatch.setattr(regularization, "_Fit", Diverging)
    out, runs = tmp_path / "out", tmp_path / "runs"
    measure(plan, out, runs)
    result = known(plan, out)[1][0]
    assert result.diverged == "the training loss is nan at step 20: lower model.lr"
    assert result.curves == ({"val/loss": [0.5]} if rows else {})
    (judged,) = report(plan, out, runs)
    assert (judged.verdict, judged.why) == (
        "not judged",
        "experiment 1 diverged (the training loss is nan at step 20)",
    )
    page = (out / "regularization/tiny/README.md").read_text()
    assert "| 1 small (diverged: 1 of 1) | 7 |" in page
    monkeypatch.setattr(regularization, "_fit", lambda *_: pytest.fail("was fitted again"))
    measure(plan, out, runs)


def test_a_report_of_fewer_seeds_leaves_none_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fitted: list[Any]
) -> None:
    written: list[tuple[int, list[int]]] = []
    monkeypatch.setattr(
        regularization,
        "write_report",
        lambda _, seeds, runs, *__: written.append((seeds, [*map(len, runs.values())])),
    )
    few = replace(FULL, seeds=1, experiments={n: EXPERIMENTS[n] for n in (1, 2)})
    measure(replace(few, seeds=2), tmp_path, tmp_path / "runs")
    report(few, tmp_path, tmp_path / "runs")
    assert written[-1] == (2, [2, 2])
    third = replace(few, seeds=3, experiments={1: EXPERIMENTS[1]})
    measure(third, tmp_path, tmp_path / "runs")
    report(few, tmp_path, tmp_path / "runs")
    assert written[-1] == (2, [2, 2])  # two have as many seeds, one has more
    report(replace(few, seeds=3), tmp_path, tmp_path / "runs")
    assert written[-1] == (2, [2, 2])  # while a third seed is measured, too


@pytest.mark.parametrize(
    ("stop", "code"),
    [
        (KeyboardInterrupt(), 130),
        (SystemExit(1), 130),  # Lightning's, of Ctrl-C within a fit
        (SystemExit(143), 143),  # the zoo's, of SIGTERM
        (SIGTERMException(), 143),
    ],
)
def test_a_study_that_is_stopped_says_how_to_go_on(
    stop: BaseException, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end, stopped("so it goes on"):
        raise stop
    assert end.value.code == code
    assert capsys.readouterr().err == "\nzoo study: stopped: so it goes on\n"


def test_a_study_outside_a_fit_says_so_of_sigterm_too(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as end, stopped("so it goes on"):
        signal.raise_signal(signal.SIGTERM)
    assert end.value.code == 143
    assert capsys.readouterr().err == "\nzoo study: stopped: so it goes on\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_fit_within_a_study_is_not_torn_out_of_its_batch() -> None:
    told: list[bool] = []

    class Asked(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            if not told:
                signal.raise_signal(signal.SIGTERM)
                told.append(trainer.received_sigterm)  # and the batch goes on to its end

    options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    trainer = Trainer(max_epochs=2, enable_progress_bar=False, callbacks=[Asked()], **options)
    with pytest.raises(SystemExit) as end, stopped("so it goes on"):
        trainer.fit(BoringModel())
    assert told == [True]
    assert end.value.code == 143


def test_help_is_no_stop(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        study.main(["in-the-wild", "--help"])
    assert end.value.code == 0
    assert "stopped:" not in capsys.readouterr().err


def test_the_list_has_the_quick_form_until_the_full_one_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fitted: list[Any]
) -> None:
    monkeypatch.setattr(regularization, "write_report", lambda *_: None)

    def listed() -> dict[str, list[str]]:
        rows = [line.split("  ") for line in verdicts(tmp_path)[1:]]
        return {row[0]: [cell.strip() for cell in row[1:] if cell.strip()] for row in rows}

    measure(of_study(QUICK, "regularization"), tmp_path, tmp_path / "runs")
    full = replace(FULL, seeds=2)
    measure(replace(full, experiments={2: EXPERIMENTS[2]}), tmp_path, tmp_path / "runs")
    measure(replace(full, seeds=1, experiments={1: EXPERIMENTS[1]}), tmp_path, tmp_path / "runs")
    assert listed()["regularization (2)"][:2] == ["quick", "one seed"]
    measure(replace(full, experiments={1: EXPERIMENTS[1]}), tmp_path, tmp_path / "runs")
    assert listed()["regularization (2)"][:2] == ["full", "reproduced"]
    assert listed()["regularization (3)"][:2] == ["quick", "one seed"]
    assert listed()["beyond (9)"][:2] == ["-", "not run"]
    measure(of_study(full, "regularization"), tmp_path, tmp_path / "runs")
    assert listed()["regularization (2)"][:2] == ["full", "reproduced"]
    # A further seed has begun, and what is known of the others stays.
    measure(replace(full, seeds=3, experiments={1: EXPERIMENTS[1]}), tmp_path, tmp_path / "runs")
    assert listed()["regularization (2)"][:2] == ["full", "reproduced"]


def test_a_run_that_was_stopped_goes_on_where_it_was(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = replace(
        plan, overrides=("--trainer.max_epochs", "3"), experiments={1: plan.experiments[1]}
    )
    measure(plan, tmp_path / "whole", tmp_path / "other")
    (whole,) = known(plan, tmp_path / "whole")[1]
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
    measure(plan, tmp_path / "out", tmp_path / "runs")
    (resumed,) = known(plan, tmp_path / "out")[1]
    (record,) = (tmp_path / "runs").rglob("run.json")  # in the folder where it began
    assert json.loads(record.read_text())["resumed"]
    for name in ("val/loss", "train_eval/loss", "test/accuracy"):
        assert resumed.curves[name] == pytest.approx(
            whole.curves[name], abs=1e-5
        )  # JSON has five places


@needs_fashion_mnist
@pytest.mark.slow
@pytest.mark.parametrize("study", STUDIES)
def test_quick_forms_run_to_their_end(zoo_cli, study: str) -> None:
    done = zoo_cli("study", study, "--quick", "--out", "study")
    assert done.code == 0, done.err
    results = sorted(Path("study").glob("*/quick/*.json"))  # 2, 4 and 6 are of the first study
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
