"""Rules of claims on numbers that are made up, and the quick forms, of which one runs every day."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from zoo import registry
from zoo.study.catalog import CLAIMS
from zoo.study.claims.base import (
    QUICK,
    Claim,
    alike,
    exactly,
    interval,
    larger,
    report,
    run_claim,
    summed,
    write_page,
)
from zoo.study.pictures import new_figure


def test_findings_state_twice_the_standard_error() -> None:
    finding = larger("says", "number", [1.0, 1.2], [0.5, 0.5])
    assert finding.value == pytest.approx(0.6)
    # s = 0.1414, over the root of two, twice.
    assert (finding.low, finding.high) == pytest.approx((0.4, 0.8))
    assert finding.verdict == "reproduced"
    assert larger("says", "number", [1.0, 1.2], [0.5, 0.5], least=1.0).verdict == "not reproduced"
    assert alike("says", "number", [1.0, 1.2], [1.1, 1.1], 0.15).verdict == "within noise"
    assert exactly("says", "number", 0.5, False).verdict == "not reproduced"
    assert interval([2.0]) == (2.0, 2.0, 2.0)
    assert summed(["reproduced", "reproduced"]) == "reproduced"
    assert summed(["reproduced", "within noise", "reproduced"]) == "2 of 3 parts reproduced"


@pytest.mark.parametrize("name", CLAIMS)
def test_every_claim_is_registered_under_its_own_name(name: str) -> None:
    claim = registry.load(CLAIMS[name])
    assert claim.name == name
    assert claim.sentence.endswith(".")


def test_a_quick_claim_leaves_numbers_and_a_picture(zoo_cli, tmp_path: Path) -> None:
    done = zoo_cli("study", "inverted-dropout", "--quick", "--out", "study")
    assert done.code == 0, done.err
    result = json.loads(Path("study/claims/inverted-dropout-quick.json").read_text())
    assert result["verdict"] == "reproduced"
    assert result["form"] == "quick"
    # E[tanh(dropout(x))] = tanh(2 x) / 2 at rate 0.5, in closed form.
    x = torch.tensor(result["numbers"]["inputs"])
    found = torch.tensor(result["numbers"]["curves"]["tanh"]["before"])
    torch.testing.assert_close(found, torch.tanh(2 * x) / 2, atol=0.02, rtol=0)
    picture = Path("study/claims/inverted-dropout-quick.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert "Before a sigmoid, a dropped unit is 0.5" in done.out

    listed = zoo_cli("study", "list", "--out", "study")
    assert listed.code == 0, listed.err
    lines = {line.split("  ")[0]: line for line in listed.out.splitlines()}
    assert "reproduced" in lines["inverted-dropout"]
    assert "not run" in lines["batch-size"]
    assert "not run" in lines["experiment 7"]


def test_what_is_not_seen_is_explained(tmp_path: Path) -> None:
    findings = [
        larger("It rises.", "points", [2.0, 2.1], [1.0, 1.1], why="never read"),
        larger("It falls.", "points", [1.0, 1.1], [2.0, 2.1], why="Because it rises."),
        larger("It turns.", "points", [1.0, 1.3], [1.1, 1.2]),
    ]
    claim = Claim(
        "toy", "A toy.", lambda _: {}, lambda _: findings, lambda _: new_figure(1, 1, 4, 3)[0]
    )
    result = run_claim(claim, QUICK, tmp_path)
    page = write_page(["toy", "never run"], tmp_path).read_text()
    for text in (page, report(result)):
        assert "Because it rises." in text
        assert "Seeds differ by more than the difference" in text
        assert "never read" not in text
    assert "1 of 3 parts reproduced" in page
    assert "s of processor time)" in page or result["cpu_seconds"] == 0


def test_an_unknown_claim_proposes_the_nearest(zoo_cli) -> None:
    result = zoo_cli("study", "batchsize")
    assert result.code == 2
    assert "did you mean 'batch-size'" in result.err


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CLAIMS if name != "inverted-dropout"])
def test_quick_forms_run_to_their_end(zoo_cli, name: str) -> None:
    done = zoo_cli("study", name, "--quick", "--out", "study")
    assert done.code == 0, done.err
    result = json.loads(Path(f"study/claims/{name}-quick.json").read_text())
    assert result["findings"]
    assert result["cpu_seconds"] < 600  # five minutes on two cores
