"""What the tests share: the real command line, run in-process, and the real data where they are."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from zoo.__main__ import main

if "PYTEST_XDIST_WORKER" in os.environ:
    # Before torch is imported: workers that share the cores with all their threads each would
    # take many times as long as one alone.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

FASHION = Path(
    os.environ.get("ZOO_DATA", "/nowhere"), "FashionMNIST", "raw", "t10k-images-idx3-ubyte"
)

# Skipped, and said, where no data are given; given ones must be whole, or the tests fail.
needs_data = pytest.mark.skipif(
    "ZOO_DATA" not in os.environ,
    reason="set ZOO_DATA to a folder with FashionMNIST and tinyshakespeare to run this test",
)
needs_fashion_mnist = needs_shakespeare = needs_data


@pytest.fixture
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of the user's cache: what is known of a test's images is not kept."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr("zoo.data.checking.cache_folder", lambda: folder)
    return folder


@dataclass
class Result:
    code: int
    out: str
    err: str


@pytest.fixture
def zoo_cli(
    tmp_path: Path,
    own_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
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
    """An empty data folder, and no internet connection."""
    from torchvision.datasets import FashionMNIST

    def down(self: FashionMNIST) -> None:
        raise OSError("the network is unreachable")

    folder = tmp_path / "empty-data"
    folder.mkdir()
    monkeypatch.setenv("ZOO_DATA", str(folder))
    monkeypatch.setattr(FashionMNIST, "download", down)
    return folder


@pytest.fixture
def cifar_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files in the authors' format, with the checksums of these instead of theirs."""
    import numpy as np
    from torchvision import datasets

    root = tmp_path / "cifar"
    root.mkdir()
    monkeypatch.setenv("ZOO_DATA", str(root))
    generator = np.random.default_rng(0)
    for peer, key in ((datasets.CIFAR10, "labels"), (datasets.CIFAR100, "fine_labels")):
        folder = root / peer.base_folder
        folder.mkdir()
        for attribute in ("train_list", "test_list"):
            listed = []
            for name, _ in getattr(peer, attribute):
                content = {
                    "data": generator.integers(0, 256, (40, 3072), dtype=np.uint8),
                    key: generator.integers(0, 10, 40).tolist(),
                }
                (folder / name).write_bytes(pickle.dumps(content))
                listed.append([name, hashlib.md5((folder / name).read_bytes()).hexdigest()])
            monkeypatch.setattr(peer, attribute, listed)
        names = {peer.meta["key"]: [f"class {index}" for index in range(100)]}
        meta = folder / peer.meta["filename"]
        meta.write_bytes(pickle.dumps(names))
        digest = hashlib.md5(meta.read_bytes()).hexdigest()
        monkeypatch.setattr(peer, "meta", {**peer.meta, "md5": digest})
    return root
