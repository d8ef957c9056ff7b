from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from statistics import mean

import pytest

from zoo.study.compare import compared, different_settings, results
from zoo.study.pictures import draw_together
from zoo.study.runs import Run, _curves, grouped, read_run


def run(name: str, accuracy: float, **settings: object) -> Run:
    curves = {
        "val/accuracy": [0.5, accuracy],
        "val/macro_f1": [0.3, 0.7],
        "val/iou": [0.2, 0.1],
        "val/loss": [0.4, 0.6],
    }
    base = {"seed_everything": 0, "model.lr": 0.1, "name": name}
    return Run(name, {**base, **settings}, curves, {"parameters": 1000})


def test_seeds_and_folds_are_averaged_and_other_settings_are_not() -> None:
    runs = [
        run("a", 0.90),
        run("b", 0.92, seed_everything=1),
        run("c", 0.94, **{"data.init_args.fold": 1}),
        run("d", 0.80, **{"model.lr": 0.2}),
    ]
    groups = grouped(runs)
    assert {name: len(members) for name, members in groups.items()} == {"a and 2 more": 3, "d": 1}
    assert different_settings(groups) == {"model.lr": [0.1, 0.2]}
    found = results(groups)
    # s = 0.02, over the root of three.
    assert found["val/accuracy"] == ["92.00% ± 1.15%", "80.00%"]
    assert found["val/loss, best (epoch)"][1] == "0.4000 (1)"
    assert found["val/macro_f1, best (epoch)"][1] == "0.7000 (2)"
    assert found["val/iou, best (epoch)"][1] == "0.2000 (1)"
    assert "mean ± standard error" in compared(groups)


def test_runs_of_the_same_name_stay_apart() -> None:
    same = [
        replace(run("x/version_0", 0.9, **{"model.lr": lr}), path=Path(folder, "x", "version_0"))
        for folder, lr in (("a", 0.1), ("b", 0.2))
    ]
    assert set(grouped([*same, run("y", 0.8, **{"model.lr": 0.3})])) == {
        "a/x/version_0",
        "b/x/version_0",
        "y",
    }


def test_values_keep_the_epochs_that_they_were_logged_in(zoo_cli, tmp_path: Path) -> None:
    short = ("fit", "--recipe", "convnet_digits", "--model.network.size", "small")
    short += ("--trainer.max_epochs", "5", "--trainer.check_val_every_n_epoch", "2")
    done = zoo_cli(*short)
    assert done.code == 0, done.err
    found = read_run(Path("runs/convnet_digits/version_0"))
    assert [*found.epochs_of("val/loss")] == [*found.epochs_of("train_eval/loss")] == [2, 4]
    assert [*found.epochs_of("train/loss")] == [1, 2, 3, 4, 5]
    assert [*found.epochs_of("test/loss")] == [1]
    assert found.epochs == 5
    assert found.epoch_of_best("val/loss") == 4  # it still falls
    # As a result of the study, in JSON, they are the same.
    (tmp_path / "result.json").write_text(json.dumps(found.as_dict()))
    again = read_run(tmp_path / "result.json")
    assert again.logged_in == found.logged_in
    assert again.epoch_of_best("val/loss") == 4
    # In a picture they stand at their epochs; beside a run of every epoch, at those of both.
    every = replace(found, curves={"val/loss": [5.0, 4.0, 3.0, 2.0, 1.0]}, logged_in={})
    first, second = found.values("val/loss")
    both = [mean((4.0, first)), mean((2.0, second))]
    for members, expected in (([found], [first, second]), ([found, every], both)):
        axis = draw_together({"a": members}, "title").axes[0]
        line = next(line for line in axis.lines if line.get_linestyle() == "-")
        assert [*line.get_xdata()] == [2, 4]
        assert [*line.get_ydata()] == pytest.approx(expected)


def test_a_run_of_one_epoch_is_a_point_that_is_seen() -> None:
    once = Run("a", {}, {"val/loss": [0.5]}, {})
    axis = draw_together({"a": [once]}, "title").axes[0]
    (line,) = axis.lines
    assert [*line.get_ydata()] == [0.5]
    assert (line.get_marker() != "None", line.get_markevery()) == (True, 1)


def test_what_did_not_reach_its_end_is_marked() -> None:
    ended = replace(run("a", 0.9), facts={"status": "finished"})
    killed = replace(run("b", 0.9, **{"model.lr": 0.2}), facts={"status": "interrupted"})
    assert "status" not in results(grouped([ended]))
    assert results(grouped([ended, killed]))["status"] == ["finished", "interrupted"]


def test_a_run_that_is_named_twice_counts_once(zoo_cli, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(run("a", 0.9).as_dict()))
    done = zoo_cli("compare", "a.json", f"{tmp_path}/a.json")
    assert done.code == 0, done.err
    assert "more" not in done.out
    assert "±" not in done.out
    refused = zoo_cli("compare", "a.json", "--to", "curves.txt")
    assert (refused.code, "ends in .png" in refused.err) == (2, True)


def test_a_test_is_of_no_epoch_also_where_data_stand_in() -> None:
    rows = [{"epoch": 0, "digits/val/loss": 0.5}, {"epoch": 1, "digits/val/loss": 0.4}]
    rows += [{"epoch": 2, "digits/test/loss": 0.6}]
    curves, logged_in = _curves(rows)
    assert curves == {"digits/val/loss": [0.5, 0.4], "digits/test/loss": [0.6]}
    assert not logged_in
    assert Run("a run", {}, curves, {}, logged_in=logged_in).epochs == 2


def test_runs_of_the_command_line_are_compared(zoo_cli) -> None:
    short = ("fit", "--recipe", "convnet_digits", "--model.network.size", "small")
    short += ("--trainer.max_epochs", "2", "--data.folds", "3")
    for fold in ("0", "2"):
        done = zoo_cli(*short, "--data.fold", fold)
        assert done.code == 0, done.err
    runs = [str(path) for path in sorted(Path("runs/convnet_digits").glob("version_*"))]
    done = zoo_cli("compare", *runs, "--to", "together.png")
    assert done.code == 0, done.err
    assert "equal settings" in done.out
    assert " ± " in next(line for line in done.out.splitlines() if "val/accuracy" in line)
    assert "train_eval/loss, best (epoch)" in done.out
    assert "val/loss - train_eval/loss" in done.out
    assert Path("together.png").read_bytes().startswith(b"\x89PNG")
    # The gap is read in one line, under the metrics.
    summary = Path(runs[0], "summary.txt").read_text()
    assert re.search(r"^(loss of training images|accuracy in training) ", summary, re.MULTILINE)


def test_what_is_no_run_is_refused(zoo_cli) -> None:
    result = zoo_cli("compare", "runs/nowhere/version_0")
    assert result.code == 2
    assert "runs/nowhere/version_0: no such run" in result.err
