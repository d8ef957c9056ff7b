from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import _registry, register_model
from torch import nn
from torch.nn import functional as F

from zoo.commands import study
from zoo.core.locks import held
from zoo.errors import UserError
from zoo.study import in_the_wild
from zoo.study.in_the_wild import Job, audit_row, main, oracle_row, ratio_row, sizes
from zoo.study.in_the_wild_page import at_fault
from zoo.study.table import Table


class Tiny(nn.Module):
    """Dropout → 1×1 convolution → BatchNorm, and the same once more through a sum."""

    def __init__(self, drop_rate: float = 0.0, drop_size: int = 3, **kwargs: float) -> None:
        super().__init__()
        if kwargs.keys() - {"attn_drop_rate"}:
            raise TypeError(f"unexpected {kwargs}")
        self.rate = drop_rate
        self.pretrained_cfg = {"input_size": (3, 16, 16)}
        self.conv, self.next = nn.Conv2d(3, 3, 1, bias=False), nn.Conv2d(3, 3, 1, bias=False)
        self.norm, self.last = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.conv(F.dropout(x, self.rate, self.training)))
        x = x + F.dropout(self.next(x), self.rate, self.training)
        return self.last(x).mean((2, 3))


class Careful(Tiny):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.is_meta:
            raise RuntimeError("no data\nat all")
        return super().forward(x)


OF_TIMM = {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"}


def tiny_wild(**kwargs: Any) -> nn.Module:
    return Tiny(**{name: value for name, value in kwargs.items() if name not in OF_TIMM})


def careful_wild(**kwargs: Any) -> nn.Module:
    return Careful(**{name: value for name, value in kwargs.items() if name not in OF_TIMM})


@pytest.fixture(autouse=True, scope="module")
def _registered() -> Any:
    kept = {
        name: dict(value)
        for name, value in vars(_registry).items()
        if name.startswith("_model") and isinstance(value, dict)
    }
    for function in (tiny_wild, careful_wild):
        function.__module__ = __name__
        register_model(function)
    yield
    for name, value in kept.items():
        getattr(_registry, name).clear()
        getattr(_registry, name).update(value)


class InProcess:
    """A worker whose rows are made where they are asked for."""

    made: list[Job] = []  # noqa: RUF012

    def __init__(self, make: Callable[[Job], Any], seconds: int, memory: int) -> None:
        self.make = make

    def __enter__(self) -> InProcess:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def row(self, job: Job) -> dict[str, Any]:
        self.made.append(job)
        return self.make(job)


DROPPED = Job("timm", "tiny_wild", "drop_rate=0.1")


def test_an_audit_says_where_dropout_reaches_batchnorm() -> None:
    row = audit_row(Job("timm", "tiny_wild"))
    assert (row["outcome"], row["ok"], row["device"]) == ("audited", "yes", "meta")
    assert row["input"] == "2×3×16×16"
    assert row["parameters"] == 2 * 9 + 4 * 3
    assert (row["batch_norms"], row["dropouts"], row["straight"], row["merged"]) == (2, 0, 0, 0)
    assert row["accepts"] == "drop_rate attn_drop_rate"  # no size, and not what it refuses
    row = audit_row(DROPPED)
    assert (row["ok"], row["dropouts"], row["straight"], row["merged"]) == ("no", 2, 1, 1)
    assert "dropout-before-bn:2" in row["findings"].split()
    assert "rate 0.1" in row["example"]
    assert "accepts" not in row
    assert audit_row(Job("timm", "tiny_wild", "attn_drop_rate=0.1"))["dropouts"] == 0


def test_what_cannot_be_audited_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    row = audit_row(Job("timm", "careful_wild"))
    assert (row["outcome"], row["device"]) == ("audited", "cpu")
    row = audit_row(Job("timm", "tiny_wild", "proj_drop_rate=0.1"))
    assert row["outcome"] == "not built"
    assert row["note"].startswith("TypeError: unexpected")
    monkeypatch.setattr(Tiny, "forward", lambda self, x: self.conv(x[:, :2]))
    row = audit_row(Job("timm", "tiny_wild"))
    assert row["outcome"] == "does not run"
    assert "RuntimeError" in row["note"]
    monkeypatch.setattr(in_the_wild, "LARGEST", 29)
    assert audit_row(Job("timm", "tiny_wild"))["outcome"] == "too large"


def test_a_ratio_is_that_of_theory() -> None:
    row = ratio_row(DROPPED)
    # White images of mean 0: 1 + p / (1 - p). The other goes through a sum and is less.
    assert (row["outcome"], row["measured"], row["at"]) == ("measured", 2, "norm")
    assert float(row["largest"]) == pytest.approx(1 / 0.9, abs=0.03)
    assert float(row["running"]) == pytest.approx(1 / 0.9, abs=0.06)
    assert 1.0 < float(row["median"]) < float(row["largest"])


def test_scales_that_hide_their_branch_are_set_to_one() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.BatchNorm1d(4), nn.Linear(4, 4))
    nn.init.zeros_(model[0].weight)
    nn.init.constant_(model[1].weight, 0.5)
    model.gamma = nn.Parameter(torch.full((4, 1, 1), 1e-6))
    model.token = nn.Parameter(torch.zeros(1, 1, 4))
    in_the_wild.wake(model)
    assert model[0].weight.tolist() == [1.0] * 4
    assert model[1].weight.tolist() == [0.5] * 4
    assert model[0].bias.tolist() == [0.0] * 4
    assert model.gamma.flatten().tolist() == [1.0] * 4
    assert model.token.flatten().tolist() == [0.0] * 4


def test_the_oracle_agrees_and_would_not_with_an_audit_that_is_blind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    row = oracle_row(DROPPED)
    assert row["outcome"] == "equal"
    assert (row["batch_norms"], row["depends"], row["near"]) == (2, 2, 2)
    monkeypatch.setattr(in_the_wild, "nearest_dropout", lambda trace, path: {"norm": 0})
    row = oracle_row(DROPPED)
    assert (row["outcome"], row["missed"], row["invented"]) == ("differs", "last", "")


@pytest.mark.parametrize("row_of", [ratio_row, oracle_row])
def test_images_are_large_enough_for_a_training_forward(
    row_of: Callable[[Job], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = Tiny.forward

    def of_training(self: Tiny, x: torch.Tensor) -> torch.Tensor:
        """As with an auxiliary head, which only training has."""
        if self.training and x.shape[-1] < least:
            raise RuntimeError("too small for the auxiliary head")
        return forward(self, x)

    monkeypatch.setattr(Tiny, "forward", of_training)
    monkeypatch.setattr(in_the_wild, "sizes", lambda *_, **__: [(3, 8, 8), (3, 16, 16)])
    least = 9
    row = row_of(DROPPED)
    assert row["input"].endswith("×3×16×16")
    assert row["outcome"] in ("measured", "equal")
    least = 17
    row = row_of(DROPPED)
    assert row["outcome"] == "does not run"
    assert "RuntimeError: too small for the auxiliary head" in row["note"]


def test_inception_v3_is_given_its_own_size_quantized_too() -> None:
    for name in ("inception_v3", "quantized_inception_v3"):
        job = Job("torchvision", name)
        assert sizes(job, nn.Identity(), smallest=False) == [(3, 299, 299)]


def test_smaller_images_are_tried_before_an_architectures_own() -> None:
    vit = timm.create_model("test_vit")  # 160 pixels, and no other number
    assert sizes(Job("timm", "test_vit"), vit, smallest=True) == [(3, 160, 160)]
    net = timm.create_model("test_resnet")
    sides = [size[-1] for size in sizes(Job("timm", "test_resnet"), net, smallest=True)]
    assert sides == [64, 96, 128, 160]
    assert sizes(Job("timm", "test_resnet"), net, smallest=False) == [(3, 160, 160)]


def test_a_run_goes_on_where_it_stopped_and_its_page_says_what_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_the_wild, "Worker", InProcess)
    options = ["--models", "tiny_wild", "--out", str(tmp_path)]
    monkeypatch.setattr(InProcess, "made", [])
    assert main(["audit", *options]) == 0
    assert [job.argument for job in InProcess.made] == ["", "drop_rate=0.1", "attn_drop_rate=0.1"]
    lines = (tmp_path / "in_the_wild.csv").read_text().splitlines(keepends=True)
    (tmp_path / "in_the_wild.csv").write_text("".join(lines[:3]) + lines[3][:20])
    monkeypatch.setattr(InProcess, "made", [])
    assert main(options) == 0
    made = [job.argument for job in InProcess.made]
    # What was cut off, the ratio, and the oracle's sample: first where a dropout reaches BatchNorm.
    assert made[:3] == ["attn_drop_rate=0.1", "drop_rate=0.1", "drop_rate=0.1"]
    assert sorted(made[3:]) == ["", "attn_drop_rate=0.1"]
    assert len((tmp_path / "in_the_wild.csv").read_text().splitlines()) == 4
    text = (tmp_path / "in_the_wild.md").read_text()
    assert f"timm {timm.__version__}" in text
    assert "1 architectures are audited with default arguments, and 1 of them have no error" in text
    assert re.search(r"1 of \d,\d{3} registered architectures are visited", text)
    assert re.search(r"\| timm \| test_in_the_wild \| drop_rate \| 1 \| straight \| 1\.1", text)
    assert re.search(r"\| attn_drop_rate \| 1 \| tiny_wild \|", text)  # has no effect
    assert "It is measured for 1 of the 1, and of these 1 are above 1.05." in text
    assert "3 of 3 ran, and 3 of them are equal" in text


def test_two_processes_do_not_make_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_the_wild, "Worker", InProcess)
    monkeypatch.setattr(InProcess, "made", [])
    options = ["--models", "tiny_wild", "--out", str(tmp_path)]
    with (
        held(tmp_path / "in_the_wild.csv"),
        pytest.raises(UserError, match=r"another process is adding rows to \S+in_the_wild.csv: "),
    ):
        main(["audit", *options])
    assert InProcess.made == []
    assert main(["audit", *options]) == 0
    assert len((tmp_path / "in_the_wild.csv").read_text().splitlines()) == 4


def test_some_models_are_a_part_of_the_sample(tmp_path: Path) -> None:
    table = Table(tmp_path / "in_the_wild.csv", in_the_wild.COLUMNS["audit"])
    for number in range(300):
        row = {"library": "timm", "version": timm.__version__.partition("+")[0]}
        row |= {"name": f"net{number}", "outcome": "audited", "batch_norms": 1}
        table.append(row | {"straight": number % 2})
    every = [Job("timm", f"net{number}") for number in range(300)]
    sample = in_the_wild.sampled(table, every)
    assert len(sample) == 200
    part = in_the_wild.sampled(table, every[:90])
    assert part == [job for job in sample if job in every[:90]]
    assert 40 < len(part) < 90


def test_options_stand_before_the_name_of_the_audit_too(tmp_path: Path) -> None:
    assert study.main(["--out", str(tmp_path), "in-the-wild", "page"]) == 0
    assert (tmp_path / "in_the_wild.md").is_file()


def test_the_list_counts_what_is_of_the_installed_versions(tmp_path: Path) -> None:
    table = Table(tmp_path / "in_the_wild.csv", in_the_wild.COLUMNS["audit"])
    table.append({"library": "timm", "version": "0.0.1", "name": "resnet18"})
    assert study.audited(tmp_path) == "not run"
    version = timm.__version__.partition("+")[0]
    table.append({"library": "timm", "version": version, "name": "resnet18"})
    assert study.audited(tmp_path).startswith("1 of ")


def test_the_page_stands_alone_and_holds_every_row(tmp_path: Path) -> None:
    table = Table(tmp_path / "in_the_wild.csv", in_the_wild.COLUMNS["audit"])
    row = {"library": "timm", "version": timm.__version__, "name": "a", "date": "2026-11-27"}
    table.append(row | {"outcome": "crash", "note": "</script> & <b>"})
    assert main(["page", "--out", str(tmp_path)]) == 0
    page = (tmp_path / "in_the_wild.html").read_text()
    assert not re.search(r'(src|href)="(https?:)?//', page)
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    content = json.loads(data[1])
    assert content["rows"][0][content["columns"].index("note")] == "</script> & <b>"
    assert "&lt;/script&gt; &amp; &lt;b&gt;" in page
    assert "<b>The run is not finished</b>" in page
    assert "&lt;/script> & &lt;b>" in (tmp_path / "in_the_wild.md").read_text()


def test_an_argument_that_only_repeats_the_defaults_is_no_fault_of_its_own() -> None:
    rows = [
        {"library": "timm", "name": name, "argument": argument, "straight": on, "merged": by}
        for name, argument, on, by in [
            ("a", "", "0", "7"),
            ("a", "drop_path_rate=0.1", "0", "7"),  # the same seven
            ("a", "proj_drop_rate=0.1", "0", "9"),
            ("b", "", "", ""),  # not audited
            ("b", "drop_rate=0.1", "0", "7"),
        ]
    ]
    faults = [(row["name"], row["argument"]) for row in at_fault(rows)]
    assert faults == [("a", ""), ("a", "proj_drop_rate=0.1"), ("b", "drop_rate=0.1")]


def test_rows_of_other_versions_are_no_part_of_the_page(tmp_path: Path) -> None:
    table = Table(tmp_path / "in_the_wild.csv", in_the_wild.COLUMNS["audit"])
    table.append({"library": "timm", "version": "0.1", "name": "a", "outcome": "audited"})
    main(["page", "--out", str(tmp_path)])
    assert "No architecture is audited yet" in (tmp_path / "in_the_wild.md").read_text()


def test_what_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no step named 'pages'"):
        main(["pages", "--out", str(tmp_path)])
    with pytest.raises(UserError, match="no such model"):
        main(["--models", "resnot*", "--out", str(tmp_path)])


REPORTS = Path(__file__).parents[2] / "docs/study/in_the_wild_reports.md"


@pytest.mark.slow
@pytest.mark.parametrize("place", range(3))
def test_a_bug_report_prints_the_number_that_it_states(
    place: int, capsys: pytest.CaptureFixture[str]
) -> None:
    code = re.findall(r"```python\n(.*?)```", REPORTS.read_text(), re.S)[place]
    stated = float(re.search(r"# (\d\.\d+);", code)[1])
    exec(compile(code, str(REPORTS), "exec"), {})
    # Convolutions of another machine add up in another order: the last digit may differ.
    assert float(capsys.readouterr().out) == pytest.approx(stated, abs=0.011)
    assert stated > 1.1


@pytest.mark.slow
def test_known_architectures_in_processes_of_their_own(tmp_path: Path) -> None:
    assert main(["--models", "densenet121", "--out", str(tmp_path)]) == 0
    rows = Table(tmp_path / "in_the_wild.csv", in_the_wild.COLUMNS["audit"]).rows()
    merged = {(row["library"], row["argument"]): row["merged"] for row in rows}
    assert merged["torchvision", "drop_rate=0.1"] == "58"
    assert merged["torchvision", ""] == merged["timm", ""] == "0"
    oracle = Table(tmp_path / "in_the_wild_oracle.csv", in_the_wild.COLUMNS["oracle"]).rows()
    assert {row["outcome"] for row in oracle} == {"equal"}
