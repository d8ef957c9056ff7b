"""Names the folder of a run, and finds checkpoints in it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from zoo import recipes
from zoo.checkpoints import store
from zoo.core.files import is_file
from zoo.core.text import shown
from zoo.errors import UserError
from zoo.runs.metrics import RunLogger
from zoo.runs.record import read_record
from zoo.tasks.base import read_checkpoint

CONFIG_FILE = "config.yaml"
# What a resumed run may change: how long it runs, on what, and what it logs; the rest makes it
# another run.
FREE = {
    "check_data",
    "early_stop",
    "init_from",
    "name",
    "resume_changes",
    "runs",
    "save_every_n_steps",
    "test_after_fit",
    "wandb",
    "weights",
}
FREE_OF_TRAINER = {
    "accelerator",
    "barebones",
    "benchmark",
    "callbacks",
    "check_val_every_n_epoch",
    "default_root_dir",
    "detect_anomaly",
    "devices",
    "enable_autolog_hparams",
    "enable_checkpointing",
    "enable_model_summary",
    "enable_progress_bar",
    "fast_dev_run",
    "limit_predict_batches",
    "limit_test_batches",
    "limit_val_batches",
    "log_every_n_steps",
    "logger",
    "max_epochs",
    "max_steps",
    "max_time",
    "min_epochs",
    "min_steps",
    "model_registry",
    "num_nodes",
    "num_sanity_val_steps",
    "plugins",
    "profiler",
    "strategy",
    "sync_batchnorm",
    "val_check_interval",
}
# What a checkpoint cannot be resumed with: its state is of another network or optimizer.
NEVER = ("model.class_path", "model.init_args.network", "model.init_args.optimizer")


def recipe_name(given: Sequence[str]) -> str:
    """Returns the name of the last recipe that was given."""
    path = Path(given[-1] if given else "custom")
    # A run's own config.yaml, runs/RECIPE/VERSION/config.yaml, is the recipe it came from.
    return path.parts[-3] if path.name == CONFIG_FILE and path.parts[2:] else path.stem


def run_name(name: str, data: dict[str, Any]) -> str:
    """Names a run; the name of stand-in data is added.

    Args:
        name: what was typed, or the recipe's name.
        data: as the data module describes them.

    Raises:
        UserError: it is not the name of one folder.
    """
    if name != Path(name).name or name in (".", "..") or not name.isprintable() or len(name) > 200:
        raise UserError(f"--name {shown(name)}: give the name of one folder, without /")
    return f"{name}-on-{data['name'].lower()}" if "instead_of" in data else name


# -- finding a checkpoint --------------------------------------------------------------------------


def find_checkpoint(wanted: str | None, runs: Path, command: str) -> Path | None:
    """``--ckpt_path last|best|FILE`` as a file; None for shipped weights.

    Args:
        wanted: what was typed.
        runs: the folder of all runs of this name.
        command: ``fit`` cannot resume shipped weights.

    Raises:
        UserError: there is no such file or run, or the newest run saved none.
    """
    if wanted is None:
        return None
    if wanted in store.names():
        if command == "fit":
            raise UserError(
                f"--ckpt_path {wanted}: shipped weights are not a run to resume. To start "
                f"from them, give --init_from {wanted}"
            )
        return None
    if wanted not in ("last", "best"):
        if not is_file(Path(wanted)):
            raise UserError(
                f"--ckpt_path: no such file: {wanted} (or last, or best, of the newest run in "
                f"{runs}, or a shipped checkpoint's name)"
            )
        return Path(wanted)
    fits = fits_of(runs)
    if not fits:
        raise UserError(f"--ckpt_path {wanted}: no run found in {runs}")
    if (file := _saved(fits[-1], wanted)).is_file():
        return file
    older = [_saved(run, wanted) for run in fits if _saved(run, wanted).is_file()]
    raise UserError(
        f"--ckpt_path {wanted}: the newest run, {fits[-1]}, ended before it saved {file.name}: "
        "start a new run without --ckpt_path"
        + (f", or give an older run's, --ckpt_path {older[-1]}" if older else "")
    )


def _saved(run: Path, name: str) -> Path:
    return run / "checkpoints" / f"{name}.ckpt"


def fits_of(runs: Path) -> list[Path]:
    """Lists the folders of fits, oldest first; other commands' folders are left out."""
    versions = [path for path in runs.glob("version_*") if path.name[8:].isdigit()]
    return sorted(
        (path for path in versions if read_record(path) or _saved(path, "last").is_file()),
        key=lambda path: int(path.name[8:]),
    )


# -- a folder for a run ----------------------------------------------------------------------------


def make_logger(runs: Path, resumed: Path | None) -> RunLogger:
    """Makes the logger of a run, in a new folder or in that of the resumed run.

    Args:
        runs: the folder of all runs of this name.
        resumed: the checkpoint that a fit resumes; None otherwise.
    """
    if resumed is not None and goes_on_in_place(runs, resumed):
        step = int(read_checkpoint(resumed).get("global_step", 0))
        version = resumed.resolve().parent.parent.name
        return RunLogger(str(runs.parent), runs.name, version, resumed_step=step)
    return RunLogger(str(runs.parent), runs.name, claim(runs))


def goes_on_in_place(runs: Path, checkpoint: Path) -> bool:
    """Returns whether a checkpoint belongs to one of these runs, which is resumed in its folder."""
    return checkpoint.resolve().parent.parent.parent == runs.resolve()


def claim(runs: Path) -> str:
    """Makes the folder of a new run, ``version_N``: no other process can have the same.

    Of several processes of one run the first makes it, before it starts the others.
    """
    taken = [int(p.name[8:]) for p in runs.glob("version_*") if p.name[8:].isdigit()]
    newest = max(taken, default=-1)
    if rank_zero_only.rank > 0:  # type: ignore[attr-defined]
        return f"version_{max(newest, 0)}"
    while True:
        newest += 1
        try:
            (runs / f"version_{newest}").mkdir(parents=True)
            return f"version_{newest}"
        except FileExistsError:  # another run began at the same moment
            continue


def remove_unbegun_run(folder: Path) -> None:
    """Removes the folder of a run that was refused before its first step."""
    if not folder.is_dir() or {file.name for file in folder.iterdir()} - {CONFIG_FILE}:
        return
    (folder / CONFIG_FILE).unlink(missing_ok=True)
    for empty in (folder, *folder.parents[:2]):  # runs/RECIPE/VERSION
        if any(empty.iterdir()):
            break
        empty.rmdir()


# -- resuming -------------------------------------------------------------------------------------


def changes(run: Path, config: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Finds the settings that a resumed run would change: option → (before, now).

    Args:
        run: its folder.
        config: the resolved recipe of now.
    """
    file = run / CONFIG_FILE
    if not file.is_file():
        return {}
    before = flat(recipes.read(file))
    now = flat(config)
    return {
        key: (before[key], now.get(key))
        for key in before
        if not _is_free(key) and key in now and before[key] != now[key]
    }


def check_changes(changed: dict[str, tuple[Any, Any]], run: Path, accepted: bool) -> None:
    """Refuses to resume a run with changed settings, unless they are accepted.

    Raises:
        UserError: the message names each option, what it was and what it would be.
    """
    never = {key: pair for key, pair in changed.items() if key.startswith(NEVER)}
    refused = never if accepted else changed
    if not refused:
        return
    listed = ", ".join(f"{key} {old!r} → {new!r}" for key, (old, new) in refused.items())
    advice = (
        "start a new run for it"
        if never
        else "leave them as they were, or give --resume_changes accept"
    )
    raise UserError(f"{run} ran with other settings than are given now ({listed[:400]}): {advice}")


def _is_free(key: str) -> bool:
    parts = key.split(".")
    if parts[0] == "trainer":
        return parts[1] in FREE_OF_TRAINER
    return parts[0] in FREE or parts[0] in ("ckpt_path", "recipe", "config", "weights_only")


def flat(content: Any, prefix: str = "") -> dict[str, Any]:
    """Flattens nested mappings, by keys with dots."""
    found: dict[str, Any] = {}
    for key, value in (content or {}).items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def how_to_go_on(run: Path, command: Sequence[str]) -> str:
    """Writes the command that resumes a stopped fit.

    Args:
        run: its folder.
        command: what was typed after ``fit``.
    """
    file = _saved(run, "last")
    if not file.is_file():
        return "nothing was saved yet: start it anew"
    kept, skip = [], False
    for word in command:
        if skip or word == "--ckpt_path":
            skip = not skip
        elif not word.startswith("--ckpt_path="):
            kept.append(word)
    step = read_checkpoint(file).get("global_step")
    line = shlex.join(["python", "-m", "zoo", "fit", *kept, "--ckpt_path", file.as_posix()])
    return f"saved at step {step}; resume with\n  {line}"
