"""What the tests share: the real command line, run in-process, and the real data where they are."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from zoo.__main__ import main

FASHION = Path(
    os.environ.get("ZOO_DATA", "/nowhere"), "FashionMNIST", "raw", "t10k-images-idx3-ubyte"
)

needs_fashion_mnist = pytest.mark.skipif(
    not FASHION.is_file(), reason="ZOO_DATA holds no FashionMNIST; set it to run this test"
)


@dataclass
class Result:
    code: int
    out: str
    err: str


@pytest.fixture
def zoo_cli(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Result]:
    """``zoo_cli("fit", "--recipe", "resnet_digits")`` in an empty working directory."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Result:
        capsys.readouterr()
        try:
            code = main(list(arguments))
        except SystemExit as stop:  # argparse's --help and its errors
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run


@pytest.fixture
def no_fashion_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder, and a network that is down."""
    from torchvision.datasets import FashionMNIST

    def down(self: FashionMNIST) -> None:
        raise OSError("the network is unreachable")

    folder = tmp_path / "empty-data"
    folder.mkdir()
    monkeypatch.setenv("ZOO_DATA", str(folder))
    monkeypatch.setattr(FashionMNIST, "download", down)
    return folder
