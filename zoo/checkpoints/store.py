"""Save, load and verify weights: ``model.safetensors`` + ``config.json``, Hugging Face's layout.

``config.json`` names task and network by registry, never by import path, and carries the resolved
recipe, what was measured, and how the run was made. Nothing of a shipped checkpoint is unpickled.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from zoo import networks
from zoo.core.checkpoint_config import CONFIG, MANIFEST, read_config, read_manifest
from zoo.core.files import is_file, is_folder, sha256, write_json, written_whole
from zoo.core.text import first_line, nearest, shown
from zoo.errors import UserError
from zoo.recipes import shipped_folder
from zoo.tasks.base import Task

WEIGHTS, CARD = "model.safetensors", "README.md"


# -- files -----------------------------------------------------------------------------------------


def names() -> list[str]:
    """Lists the shipped checkpoints."""
    folder = shipped_folder("checkpoints")
    return sorted(path.parent.name for path in folder.glob(f"*/{CONFIG}"))


def folder_of(source: str | Path) -> Path:
    """Finds the folder of a checkpoint, by name or by path.

    Raises:
        UserError: there is none.
    """
    name = str(source)
    for folder in (shipped_folder("checkpoints") / name, Path(name)):
        if is_file(folder / CONFIG):
            return folder
    if is_folder(Path(name)):
        raise UserError(f"{name}: no {CONFIG} in this folder: it is not a checkpoint")
    if len(Path(name).parts) > 1:
        raise UserError(f"{name}: there is no such folder or file")
    raise UserError(
        f"no checkpoint named {shown(name)}{nearest(name, names())} "
        f"(shipped: {', '.join(names()) or 'none'}; or give a folder, or a .ckpt file)"
    )


def is_shipped(folder: Path) -> bool:
    """Returns whether a checkpoint's folder is a shipped one, which the manifest lists."""
    return folder.parent.resolve() == shipped_folder("checkpoints").resolve()


def manifest() -> dict[str, str]:
    """Reads the sha256 of every shipped file, by ``NAME/FILE``."""
    return read_manifest(shipped_folder("checkpoints"))


def verify(folder: Path) -> dict[str, Any]:
    """Checks the weights' sha256, and a shipped folder's files against the manifest.

    Returns:
        The checkpoint's configuration.

    Raises:
        UserError: a file is missing, truncated or altered.
    """
    if is_shipped(folder):
        listed = {
            key.removeprefix(f"{folder.name}/"): digest
            for key, digest in manifest().items()
            if key.startswith(f"{folder.name}/")
        }
        if WEIGHTS not in listed:
            raise UserError(f"{folder} is not listed in {folder.parent / MANIFEST}")
        _compare(folder, listed)  # before anything of it is read
        return read_config(folder)
    config = read_config(folder)
    _compare(folder, {WEIGHTS: config["weights_sha256"]})
    return config


def _compare(folder: Path, expected: dict[str, str]) -> None:
    for name, digest in expected.items():
        if not is_file(folder / name):
            raise UserError(f"{folder / name} is missing")
        if (found := sha256(folder / name)) != digest:
            raise UserError(
                f"{folder / name} is truncated or altered (sha256 {found[:12]}…, expected "
                f"{digest[:12]}…): restore the file, nothing was loaded"
            )


def read_weights(path: Path) -> dict[str, Tensor]:
    """Reads the tensors of a safetensors file.

    Raises:
        UserError: it is not one.
    """
    try:
        return load_file(path)
    except Exception as error:  # SafetensorError, and torch's own of a dtype or size of no tensor
        raise UserError(f"{path}: not a safetensors file ({first_line(error)})") from None


# -- save ------------------------------------------------------------------------------------------


def golden_outputs(task: Task) -> list[list[float]]:
    """Computes the task's golden outputs, on the CPU in float32, in evaluation mode."""
    task = task.eval().float().cpu()
    with torch.no_grad():
        outputs = task.golden().flatten(1)
        return [[round(value, 5) for value in row] for row in outputs.tolist()]


def plain_state(network: nn.Module) -> dict[str, Tensor]:
    """Converts weights to what safetensors takes: contiguous, and tied ones each for itself."""
    seen: set[int] = set()
    plain = {}
    for name, tensor in network.state_dict().items():
        plain[name] = tensor.clone() if tensor.data_ptr() in seen else tensor.contiguous()
        seen.add(tensor.data_ptr())
    return plain


def save(task: Task, folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Writes weights and config.json of a task, whole or not at all.

    Args:
        task: its network must be one of the zoo's.
        folder: made where it does not exist.
        config: what is known of the run; task, network, data, parameters, golden outputs and the
            weights' sha256 are added.

    Returns:
        The complete configuration.

    Raises:
        UserError: the network is not one of the zoo's.
    """
    network = networks.describe(task.network)
    if network is None:
        raise UserError(f"{type(task.network).__name__} is not a network of the zoo's registry")
    args = {name: value for name, value in task.hparams.items() if name != "network"}
    with written_whole(folder / WEIGHTS) as partial:
        save_file(plain_state(task.network), partial)
        complete = {
            "format": 1,
            "task": {"name": type(task).__name__, "args": args},
            "network": network,
            "parameters": sum(p.numel() for p in task.network.parameters()),
            "data": task.data_info,
            **config,
            "golden": golden_outputs(task),
            "weights_sha256": sha256(partial),
        }
    write_json(folder / CONFIG, complete)
    return complete
