"""Rules of claims on numbers that are made up, and the quick forms, of which one runs every day."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from matplotlib.text import Text

from zoo import registry
from zoo.core.files import write_json
from zoo.data.digits import Digits
from zoo.errors import UserError
from zoo.study.catalog import CLAIMS
from zoo.study.claims import gan_norm, learning_rate, spatial_dropout, uncertainty
from zoo.study.claims.base import (
    FULL,
    QUICK,
    Claim,
    Finding,
    Form,
    alike,
    exactly,
    in_lines,
    interval,
    larger,
    redraw,
    report,
    rounded,
    run_claim,
    signed,
    summed,
    within,
    write_page,
)
from zoo.study.fitting import build, train
from zoo.study.pictures import COLORS, draw_points, large_type, new_figure, palette, set_title
from zoo.study.progress import elapsed

STORED = sorted(Path("docs/study/claims").glob("*.json"))


def test_findings_state_twice_the_standard_error() -> None:
    finding = larger("says", "number", [1.0, 1.2], [0.5, 0.5])
    assert finding.value == pytest.approx(0.6)
    # s = 0.1414, over the root of two, twice.
    assert (finding.low, finding.high) == pytest.approx((0.4, 0.8))
    assert finding.verdict == "reproduced"
    assert larger("says", "number", [1.0, 1.2], [0.5, 0.5], least=1.0).verdict == "not reproduced"
    assert alike("says", "number", [1.0, 1.2], [1.1, 1.1], 0.15).verdict == "within noise"
    assert within("says", "number", [3.0, 3.2], [0.5, 0.7]).verdict == "reproduced"
    assert within("says", "number", [3.0, 3.2], [-0.1, 0.1]).verdict == "within noise"
    assert interval([2.0]) == (2.0, 2.0, 2.0)
    assert summed(["reproduced", "reproduced"]) == "reproduced"
    assert summed(["reproduced", "within noise", "reproduced"]) == "2 of 3 parts reproduced"


def test_one_seed_has_no_interval_and_no_verdict() -> None:
    for finding in (
        larger("says", "number", [2.0], [1.0]),
        alike("says", "number", [2.0], [2.0], 0.1),
        within("says", "number", [2.0], [1.0]),
    ):
        assert finding.verdict == "one seed"
        assert finding.low is None
        assert "(one seed)" in str(finding)
        assert "One seed has no spread." in str(finding)


def test_what_is_exact_needs_no_seeds_and_says_so() -> None:
    finding = exactly("says", "number", 0.5, False)
    assert (finding.verdict, finding.low, finding.exact) == ("not reproduced", None, True)
    assert "0.5 (exact)" in str(finding)


def test_an_interval_over_a_margin_is_explained_as_one() -> None:
    near = alike("says", "number", [1.0, 1.2], [1.1, 1.1], 0.15)
    assert "reaches over the margin of 0.15" in near.reason
    far = alike("says", "number", [2.0, 2.1], [1.0, 1.1], 0.15)
    assert far.verdict == "not reproduced"
    assert "larger than 0.15" in far.reason


def test_a_change_that_rounds_to_nothing_has_no_minus() -> None:
    found = [signed(change, 3) for change in (-0.0004, -0.0006, 0.0, 1.5)]
    assert found == ["+0.000", "−0.001", "+0.000", "+1.500"]


def test_means_in_pictures_keep_their_zeros() -> None:
    _, axes = new_figure(1, 1, 6, 3)
    draw_points(axes[0, 0], {"a": [0.9], "b": [100.0], "c": [0.12345]}, "unit", "title")
    assert [text.get_text() for text in axes[0, 0].texts] == ["0.900", "100", "0.123"]


def test_the_command_is_that_which_was_typed() -> None:
    assert QUICK.arguments == " --quick"
    assert replace(QUICK, seeds=1).arguments == " --quick --seeds 1"
    assert FULL.arguments == ""
    assert replace(FULL, seeds=9).arguments == " --seeds 9"


def test_numbers_are_stored_one_list_a_line() -> None:
    content = {"a": [1.23456789, 2.0], "b": [[1, 2], [3, 4]], "c": {}, "d": {"×": "x"}}
    text = in_lines(rounded(content))
    assert json.loads(text) == {
        "a": [1.23457, 2.0],
        "b": [[1, 2], [3, 4]],
        "c": {},
        "d": {"×": "x"},
    }
    assert '"a": [1.23457, 2.0],' in text
    assert len(text.splitlines()) == 11


def lightness(color: str) -> float:
    """L* of CIE 1976, for sRGB."""
    parts = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    y = sum(w * v for w, v in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    return 116 * y ** (1 / 3) - 16 if y > 0.008856 else 903.3 * y


def test_colors_grow_lighter_so_that_greys_differ() -> None:
    steps = [lightness(light) - lightness(dark) for dark, light in pairwise(COLORS)]
    assert min(steps) > 8
    for count in range(1, len(COLORS) + 1):
        chosen = [lightness(color) for color in palette(count)]
        assert chosen == sorted(chosen)
        assert len(set(chosen)) == count


@pytest.mark.parametrize("file", STORED, ids=lambda file: file.stem)
def test_stored_results_are_judged_and_drawn_without_measuring(file: Path) -> None:
    result = json.loads(file.read_text())
    claim = registry.load(CLAIMS[result["claim"]])
    found = [Finding(**finding) for finding in result["findings"]]
    assert claim.judge(result["numbers"]) == found
    with large_type():
        figure = claim.draw(result["numbers"])
        set_title(figure, claim.message(result["numbers"]), claim.sentence)
    assert figure.get_figwidth() <= 10
    sizes = {text.get_text(): text.get_size() for text in figure.findobj(Text) if text.get_text()}
    assert min(sizes.values()) >= 11
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    assert all(sizes[title] >= 14 for title in titles if title)
    assert max(sizes.values()) >= 14


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
    file = Path("study/claims/inverted-dropout-quick.png")
    assert file.read_bytes().startswith(b"\x89PNG")
    file.unlink()
    redraw({"inverted-dropout": CLAIMS["inverted-dropout"]}, Path("study"))
    assert file.read_bytes().startswith(b"\x89PNG")
    again = json.loads(file.with_suffix(".json").read_text())
    assert again == result
    assert "Before a sigmoid, a dropped unit is 0.5" in done.out

    listed = zoo_cli("study", "list", "--out", "study")
    assert listed.code == 0, listed.err
    lines = {line.split("  ")[0]: line for line in listed.out.splitlines()}
    assert "reproduced" in lines["inverted-dropout"]
    assert "not run" in lines["batch-size"]
    assert "not run" in lines["regularization (7)"]
    refused = zoo_cli("study", "list", "--quick")
    assert (refused.code, "list takes --out alone" in refused.err) == (2, True)


def test_what_is_not_seen_is_explained(tmp_path: Path) -> None:
    findings = [
        larger("It rises.", "points", [2.0, 2.1], [1.0, 1.1], why="never read"),
        larger("It falls.", "points", [1.0, 1.1], [2.0, 2.1], why="Because it rises."),
        larger("It turns.", "points", [1.0, 1.3], [1.1, 1.2]),
    ]
    claim = Claim(
        "toy",
        "A toy.",
        lambda _: {},
        lambda _: findings,
        lambda _: new_figure(1, 1, 4, 3)[0],
        lambda _: "It is a toy",
    )
    result = run_claim(claim, QUICK, tmp_path)
    page = write_page(["toy", "never run"], tmp_path).read_text()
    for text in (page, report(result)):
        assert "Because it rises." in text
        assert "Twice the standard error over seeds is more than the difference" in text
        assert "never read" not in text
    assert "1 of 3 parts reproduced" in page
    file = tmp_path / "claims/toy-quick.json"
    write_json(file, result | {"seconds": 5.2, "cpu_seconds": 3.1})
    page = write_page(["toy"], tmp_path).read_text()
    assert "5 s (3 s of processor time) on " in page


def toy(measured: list[int]) -> Claim:
    """A claim that notes the seeds with which it was measured."""

    def measure(form: Form) -> dict[str, object]:
        measured.append(form.seeds)
        return {}

    def draw(_: object) -> object:
        return new_figure(1, 1, 4, 3)[0]

    found = [larger("It rises.", "points", [2.0, 2.1], [1.0, 1.1])]
    return Claim("toy", "A toy.", measure, lambda _: found, draw, lambda _: "It is a toy")


def test_fewer_seeds_do_not_replace_more(tmp_path: Path) -> None:
    measured: list[int] = []
    claim = toy(measured)
    run_claim(claim, FULL, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    with pytest.raises(UserError, match="has 5 seeds, and 1 would replace them: give another"):
        run_claim(claim, replace(FULL, seeds=1), tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before
    run_claim(claim, replace(FULL, seeds=6), tmp_path)
    run_claim(claim, replace(QUICK, seeds=1), tmp_path)  # a file of its own
    assert measured == [5, 6, 1]


def test_more_seeds_that_another_process_wrote_meanwhile_stay(tmp_path: Path) -> None:
    def measure(form: Form) -> dict[str, object]:
        if form.seeds == 5:
            run_claim(claim, replace(FULL, seeds=10), tmp_path)
        return {}

    claim = replace(toy([]), measure=measure)
    with pytest.raises(UserError, match="has 10 seeds, and 5 would replace them: give another"):
        run_claim(claim, FULL, tmp_path)
    assert json.loads((tmp_path / "claims/toy-full.json").read_text())["seeds"] == 10


def test_a_claim_says_how_long_it_took_last_in_the_same_form(zoo_cli) -> None:
    result = zoo_cli("study", "inverted-dropout", "--quick", "--out", "study")
    assert "took" not in result.err
    file = Path("study/claims/inverted-dropout-quick.json")
    known = json.loads(file.read_text())
    write_json(file, known | {"seconds": 70.2, "cpu_seconds": 65.1})
    write_json(file.with_name("inverted-dropout-full.json"), known | {"form": "full"})
    result = zoo_cli("study", "inverted-dropout", "--quick", "--out", "study")
    assert "; last time it took 70 s (65 s of processor time)\n" in result.err


def test_what_could_not_be_written_is_not_measured(tmp_path: Path) -> None:
    measured: list[int] = []
    (tmp_path / "file").write_text("a file")
    for out in (tmp_path / "file", Path("/proc/nowhere")):
        with pytest.raises(UserError, match="nothing can be written in"):
            run_claim(toy(measured), QUICK, out)
    assert measured == []


@pytest.mark.parametrize(
    "content", ["[1", "[1]", '{"findings": 3}', '{"claim": "toy", "findings": [{"says": "no"}]}']
)
def test_a_damaged_result_is_named_before_anything_is_measured(
    zoo_cli, tmp_path: Path, content: str
) -> None:
    damaged = Path("study/claims/rmsnorm-full.json")
    damaged.parent.mkdir(parents=True)
    damaged.write_text(content)
    for arguments in (("inverted-dropout", "--quick"), ("list",)):
        done = zoo_cli("study", *arguments, "--out", "study")
        assert done.code == 2
        assert damaged.name in done.err
        assert "Traceback" not in done.err
    assert [*damaged.parent.iterdir()] == [damaged]


def test_a_name_has_one_color_in_all_panels() -> None:
    values = {"a": [1.0, 2.0], "b": [2.0, 3.0], "c": [3.0, 4.0]}
    some = {name: values[name] for name in ("a", "c")}
    _, axes = new_figure(1, 2, 8, 3)
    draw_points(axes[0, 0], values, "m", "all")
    draw_points(axes[0, 1], some, "m", "some", values)
    left, right = (
        [line.get_color() for line in axis.lines if line.get_marker() == "."] for axis in axes.flat
    )
    assert len(set(left)) == 3
    assert right == [left[0], left[2]]


def test_a_run_that_diverges_keeps_its_losses() -> None:
    task = learning_rate.Recorded(
        build(0, learning_rate.PlainNet, batch_norm=False), lr=1e3, warmup=0.0, schedule="constant"
    )
    fitted = train(task, Digits(64, shift=0), epochs=2, seed=0)
    assert fitted.diverged
    assert task.losses
    assert math.isfinite(float(task.losses[0]))


def run(accuracy: float, diverged: bool = False) -> dict[str, object]:
    return {"accuracy": accuracy, "diverged": diverged, "loss": [2.3, None], "every": 1}


def test_a_rate_is_known_to_the_step_of_the_grid() -> None:
    low, high = [run(0.95)] * 2, [run(0.95, diverged=True)] * 2
    numbers = {
        "kinds": {"without": {"0.1": low, "0.2": high}, "BatchNorm": {"1.6": low, "3.2": high}}
    }
    gap, error = learning_rate.ratio(numbers)
    assert math.exp(gap) == pytest.approx(16)
    # Both rates are uniform over ln 2, and no seed differs.
    assert error == pytest.approx(math.sqrt(2 * math.log(2) ** 2 / 12 / 2))
    assert learning_rate.bounds(numbers) == ""
    dead = {"kinds": {**numbers["kinds"], "without": {"0.1": high, "0.2": high}}}
    assert "2 of 2 seeds without BatchNorm train at no rate" in learning_rate.bounds(dead)


def test_shares_without_spread_are_not_certain() -> None:
    finding = gan_norm.rarer("says", "number", [True] * 3, [False] * 3)
    assert finding.value == pytest.approx(0.6)  # 4/5 less 1/5
    assert finding.high - finding.low == pytest.approx(4 * math.sqrt(2 * 0.16 / 5))
    assert gan_norm.rarer("says", "number", [True], [False]).verdict == "one seed"
    assert gan_norm.rarer("says", "number", [True, False], [False] * 2).verdict == "within noise"


def test_most_on_segmentation_asks_for_a_gain_there() -> None:
    accuracy = {"spatial": [0.80, 0.81], "nothing": [0.90, 0.91], "element-wise": [0.9, 0.91]}
    accuracy |= {name: [0.9, 0.91] for name in spatial_dropout.PATHS}
    iou = {"spatial": [0.70, 0.72], "nothing": [0.70, 0.72], "element-wise": [0.7, 0.72]}
    most = spatial_dropout.judge_all({"accuracy": accuracy, "iou": iou})[-1]
    assert most.low > 0  # it loses less than on classes
    assert most.verdict == "within noise"
    iou["spatial"] = [0.80, 0.82]
    assert spatial_dropout.judge_all({"accuracy": accuracy, "iou": iou})[-1].verdict == "reproduced"


def test_a_rate_is_chosen_on_images_that_do_not_judge() -> None:
    ways = {
        f"{uncertainty.MC}, drop rate {rate}": {"nll": [nll], "chosen/nll": [chosen]}
        for rate, nll, chosen in zip(
            uncertainty.RATES, (0.1, 0.2, 0.3), (0.3, 0.1, 0.2), strict=True
        )
    }
    assert uncertainty.best(ways, uncertainty.MC, "nll").endswith("0.3")
    assert uncertainty.best(ways, uncertainty.MC, "ood").endswith("0.3")


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


def test_a_terminal_shows_for_how_long_and_a_log_file_stays_as_it_is(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with elapsed("drop-rate, quick form"):
        pass
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("FORCE_COLOR", "1")  # stands for a terminal
    monkeypatch.delenv("NO_COLOR", raising=False)
    with elapsed("drop-rate, quick form"):
        pass
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "drop-rate, quick form" in printed.err
    assert "0:00:00" in printed.err
