"""The wheel carries recipes and checkpoints, and works far away from the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from zoo import recipes
from zoo.checkpoints import store

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    # Without isolation nothing is downloaded: hatchling is among the test extra. By way of the
    # sdist, as a release would be made.
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_every_recipe_and_checkpoint(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    assert {f"zoo/_recipes/{name}.yaml" for name in recipes.names()} <= held
    assert {f"zoo/_checkpoints/{file}" for file in store.manifest()} <= held
    assert "zoo/_checkpoints/MANIFEST.json" in held
    assert not [name for name in held if name.startswith(("tests/", "recipes/", "runs/"))]


def test_installed_elsewhere_it_lists_verifies_and_trains(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    done = subprocess.run([*pip, "--target", site, wheel], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    work = tmp_path / "work"
    work.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(site)}

    def zoo(*arguments: str) -> str:
        command = [sys.executable, "-m", "zoo", *arguments]
        done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = "import zoo, sys; print(zoo.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", where], cwd=work, env=environment, capture_output=True, text=True
    )
    assert found.stdout.startswith(str(site))
    assert [entry["name"] for entry in json.loads(zoo("list", "--json"))] == recipes.names()
    assert "resnet_fmnist: checksums match" in zoo("verify")
    assert "test/accuracy" in zoo("fit", "--recipe", "resnet_digits", "--trainer.max_epochs", "1")
    assert (work / "runs/resnet_digits/version_0/curves.png").is_file()
