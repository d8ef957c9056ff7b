"""Where a run lies, what it is called, and which checkpoint is meant."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoo.checkpoints import store
from zoo.core.files import is_file
from zoo.core.text import shown
from zoo.errors import UserError
from zoo.runs.metrics import RunLogger
from zoo.tasks.base import read_checkpoint


def recipe_name(given: Sequence[str]) -> str:
    """The name of the last of the recipes that were given."""
    path = Path(given[-1] if given else "custom")
    # A run's own config.yaml, runs/RECIPE/VERSION/config.yaml, is the recipe it came from.
    return path.parts[-3] if path.name == "config.yaml" and path.parts[2:] else path.stem


def run_name(name: str, data: dict[str, Any]) -> str:
    """A run's name; with stand-in data, theirs too.

    Args:
        name: what was typed, or the recipe's name.
        data: as the data module describes them.

    Raises:
        UserError: it is not the name of one folder.
    """
    if name != Path(name).name or name in (".", "..") or not name.isprintable() or len(name) > 200:
        raise UserError(f"--name {shown(name)}: give the name of one folder, without /")
    return f"{name}-on-{data['name'].lower()}" if "instead_of" in data else name


def find_checkpoint(wanted: str | None, runs: Path, command: str) -> Path | None:
    """``--ckpt_path last|best|FILE`` as a file; None for shipped weights.

    Args:
        wanted: what was typed.
        runs: the folder of all runs of this name.
        command: ``fit`` cannot go on from shipped weights.

    Raises:
        UserError: there is no such file, or no such run.
    """
    if wanted is None:
        return None
    if wanted in store.names():
        if command == "fit":
            raise UserError(
                f"--ckpt_path {wanted}: shipped weights are no run to go on with; to start "
                f"from them, zoo.load({wanted!r}) in Python"
            )
        return None
    if wanted not in ("last", "best"):
        if not is_file(Path(wanted)):
            raise UserError(
                f"--ckpt_path: no such file: {wanted} (or last, or best, of the newest run in "
                f"{runs}, or a shipped checkpoint's name)"
            )
        return Path(wanted)
    run = last_run(runs)
    file = run / "checkpoints" / f"{wanted}.ckpt" if run else None
    if file is None or not file.is_file():
        raise UserError(f"--ckpt_path {wanted}: no run with such a checkpoint in {runs}")
    return file


def last_run(runs: Path) -> Path | None:
    """The newest run that has a checkpoint."""
    found = runs.glob("*/checkpoints/last.ckpt")
    newest = max(found, key=lambda path: path.stat().st_mtime, default=None)
    return newest.parent.parent if newest else None


def make_logger(runs: Path, resumed: Path | None) -> RunLogger:
    """The logger of a run, whose folder is a new one, or that of the run that goes on.

    Args:
        runs: the folder of all runs of this name.
        resumed: the checkpoint that a fit goes on from; None for all else.
    """
    root, name = str(runs.parent), runs.name
    if resumed is not None:
        step = int(read_checkpoint(resumed).get("global_step", 0))
        run = resumed.resolve().parent.parent
        if run.parent == runs.resolve():  # goes on where it stopped
            return RunLogger(root, name, run.name, resumed_step=step)
    return RunLogger(root, name)


def remove_unbegun_run(folder: Path) -> None:
    """What is refused as late as in the fit, an optimizer's argument say, leaves no folder."""
    if not folder.is_dir() or [file.name for file in folder.iterdir()] != ["config.yaml"]:
        return
    (folder / "config.yaml").unlink()
    for empty in (folder, *folder.parents[:2]):  # runs/RECIPE/VERSION
        if any(empty.iterdir()):
            break
        empty.rmdir()
