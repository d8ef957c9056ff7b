"""Every notebook runs from a clean kernel, and ends in a number that means what it says."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import needs_fashion_mnist
from tests.notebooks import NOTEBOOKS, execute, number_line

# Where the last cell's number lies, whatever the machine and the order of its sums.
BANDS = {
    "1_train": (97, 100),  # per cent of the digits
    "2_finetune": (75, 100),  # per cent of the patches
    "3_audit": (58, 58),  # BatchNorms: all that stand within a dense layer
    "4_variance_shift": (1.2, 3),  # times the variance of evaluation
    "5_uncertainty": (0.5, 4),  # points
    "6_generate": (95, 100),  # per cent of the samples
    "7_eight_experiments": (0.1, 1),  # nats
}
WITHOUT_FASHION_MNIST = ("1_train", "2_finetune", "3_audit", "4_variance_shift")
PICTURE, FOLDER = 60_000, 1_000_000  # bytes, at most


def content(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def outputs_of(file: Path) -> list[dict[str, Any]]:
    return [o for cell in content(file)["cells"] for o in cell.get("outputs", [])]


def texts_of(output: dict[str, Any]) -> str:
    """All of an output but its pictures."""
    data = {k: v for k, v in output.get("data", {}).items() if not k.startswith("image/")}
    return json.dumps([output.get("text", ""), data], ensure_ascii=False)


def the_number(line: str) -> float:
    """The number with which the sentence begins."""
    found = re.match(r"(\d+(?:\.\d+)?) ", line)
    assert found is not None, line
    return float(found[1])


def check_number(name: str, line: str) -> None:
    low, high = BANDS[name]
    assert low <= the_number(line) <= high, line
    # One sentence of words, and not a number alone.
    assert line.endswith(".")
    assert "\n" not in line
    assert len(re.findall(r"[A-Za-z]{2,}", line)) > 8, line


def test_there_are_seven() -> None:
    assert [file.stem for file in NOTEBOOKS] == sorted(BANDS)


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_it_was_executed_once_from_top_to_bottom_without_a_fault(file: Path) -> None:
    cells = [cell for cell in content(file)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    kinds = {output["output_type"] for output in outputs_of(file)}
    assert "stream" in kinds
    assert "error" not in kinds


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_it_ends_in_a_number_and_its_meaning(file: Path) -> None:
    (output,) = content(file)["cells"][-1]["outputs"]
    check_number(file.stem, "".join(output["text"]).strip())


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_it_names_no_place_of_the_machine_it_ran_on(file: Path) -> None:
    for output in outputs_of(file):
        # Not train/loss, and not an address of the web.
        found = re.search(r"(?<![\w.)/])/[\w.-]+/[\w.-]+", texts_of(output))
        assert found is None, found


def test_pictures_and_folder_are_small() -> None:
    for file in NOTEBOOKS:
        for output in outputs_of(file):
            for kind, data in output.get("data", {}).items():
                if kind.startswith("image/"):
                    assert len(base64.b64decode("".join(data))) < PICTURE, file.stem
    assert sum(file.stat().st_size for file in NOTEBOOKS) < FOLDER


@pytest.mark.slow
@pytest.mark.parametrize(
    "file", [f for f in NOTEBOOKS if f.stem in WITHOUT_FASHION_MNIST], ids=lambda file: file.stem
)
def test_it_runs_from_a_clean_kernel(file: Path, tmp_path: Path) -> None:
    check_number(file.stem, number_line(execute(file, tmp_path)))


@pytest.mark.slow
@needs_fashion_mnist
@pytest.mark.parametrize(
    "file",
    [f for f in NOTEBOOKS if f.stem not in WITHOUT_FASHION_MNIST],
    ids=lambda file: file.stem,
)
def test_it_runs_from_a_clean_kernel_on_fashion_mnist(file: Path, tmp_path: Path) -> None:
    check_number(file.stem, number_line(execute(file, tmp_path)))
