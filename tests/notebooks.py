"""Executes docs/notebooks: ``python tests/notebooks.py [NAME …]`` renews their outputs."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))
SECONDS = 900  # of one cell, on a busy machine


def execute(file: Path, folder: Path) -> Any:
    """Executes a notebook by a fresh kernel in ``folder/notebooks``, beside the study's results.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed.
    """
    notebook = nbformat.read(file, as_version=4)
    shutil.copytree(ROOT / "docs/study", folder / "study")
    here = folder / "notebooks"
    here.mkdir()
    client = NotebookClient(
        notebook,
        timeout=SECONDS,
        kernel_name="python3",
        coalesce_streams=True,
        resources={"metadata": {"path": here}},
    )
    # As in an activated environment: `python` is this one, and `zoo` this checkout's.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    # tqdm warns, by a path of this machine, where no ipywidgets are installed.
    ours = {"PATH": path, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore:IProgress not found"}
    client.execute(env={**os.environ, **ours})
    return notebook


def tidy(notebook: Any) -> None:
    """Leaves out what differs from one execution to the next, and no reader needs."""
    notebook.metadata["language_info"] = {"name": "python"}
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)


def main(names: list[str]) -> None:
    for file in NOTEBOOKS:
        if not names or file.stem in names:
            with tempfile.TemporaryDirectory() as folder:
                notebook = execute(file, Path(folder))
            tidy(notebook)
            nbformat.write(notebook, file)
            print(f"{file.stem}: {number_line(notebook)}", flush=True)


def number_line(notebook: Any) -> str:
    """What the last cell prints: a number and its meaning."""
    (output,) = notebook.cells[-1].outputs
    line: str = output["text"]
    return line.strip()


if __name__ == "__main__":
    main(sys.argv[1:])
