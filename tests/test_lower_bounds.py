"""The oldest versions that pyproject.toml allows load checkpoints as the newest do."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Those that a checkpoint from elsewhere meets: what reads it, and what is built from it.
LOADING = [
    "tests/checkpoints/test_rebuild.py",
    "tests/core/test_lightning_file.py",
    "tests/networks/test_timm_network.py",
]


def lower_bounds() -> list[str]:
    """``name==version`` of every dependency."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    bounds = [line.replace(">=", "==") for line in project["dependencies"]]
    assert all(re.fullmatch(r"[\w.\[\]-]+==[\d.]+", bound) for bound in bounds)
    return bounds


def test_every_dependency_has_a_lower_bound() -> None:
    assert "timm==1.0.26" in lower_bounds()


@pytest.mark.slow
def test_the_oldest_versions_load_checkpoints(tmp_path: Path) -> None:
    """Installs them from the package index: some gigabytes, and minutes."""
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    # The environment's own pip may be old, and such ones search for minutes among versions.
    for wanted in (["--upgrade", "pip"], [*lower_bounds(), "pytest>=8.3"]):
        done = subprocess.run(
            [python, "-m", "pip", "install", "--quiet", *wanted], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    done = subprocess.run(
        [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *LOADING],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
