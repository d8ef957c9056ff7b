"""Save, load and verify weights: ``model.safetensors`` + ``config.json``, Hugging Face's layout.

``config.json`` names task and network by registry, never by import path, and carries the resolved
recipe, what was measured, and how the run was made. Nothing of a shipped checkpoint is unpickled.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from zoo import networks
from zoo.core.files import sha256, write_json
from zoo.core.renamed import renamed_network
from zoo.core.text import nearest
from zoo.errors import UserError
from zoo.recipes import shipped_folder
from zoo.tasks.base import Task

WEIGHTS, CONFIG, CARD, MANIFEST = "model.safetensors", "config.json", "README.md", "MANIFEST.json"


# -- files -----------------------------------------------------------------------------------------


def names() -> list[str]:
    """The shipped checkpoints."""
    folder = shipped_folder("checkpoints")
    return sorted(path.parent.name for path in folder.glob(f"*/{CONFIG}"))


def folder_of(source: str | Path) -> Path:
    """The folder of a checkpoint, by name or by path.

    Raises:
        UserError: there is none.
    """
    for folder in (shipped_folder("checkpoints") / str(source), Path(source)):
        if (folder / CONFIG).is_file():
            return folder
    if Path(source).is_dir():
        raise UserError(f"{source}: no {CONFIG} in this folder: it is not a checkpoint")
    raise UserError(
        f"no checkpoint named {str(source)!r}{nearest(str(source), names())} "
        f"(shipped: {', '.join(names()) or 'none'}; or give a folder, or a .ckpt file)"
    )


def manifest() -> dict[str, str]:
    """sha256 of every shipped file, by ``NAME/FILE``."""
    path = shipped_folder("checkpoints") / MANIFEST
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def read_config(folder: Path) -> dict[str, Any]:
    """A checkpoint's config.json.

    Raises:
        UserError: it is not JSON, or not one of the zoo's.
    """
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        assert {"task", "network", "weights_sha256"} <= set(config)
    except (ValueError, AssertionError, TypeError):
        raise UserError(f"{folder / CONFIG}: not a configuration that the zoo wrote") from None
    return {**config, "network": renamed_network(config["network"])}


def verify(folder: Path) -> dict[str, Any]:
    """Checks the weights' sha256, and a shipped folder's files against the manifest.

    Returns:
        The checkpoint's configuration.

    Raises:
        UserError: a file is missing, truncated or altered.
    """
    config = read_config(folder)
    expected = {WEIGHTS: config["weights_sha256"]}
    if folder.parent.resolve() == shipped_folder("checkpoints").resolve():
        listed = {
            key.removeprefix(f"{folder.name}/"): digest
            for key, digest in manifest().items()
            if key.startswith(f"{folder.name}/")
        }
        if WEIGHTS not in listed:
            raise UserError(f"{folder} is not listed in {folder.parent / MANIFEST}")
        expected = listed
    for name, digest in expected.items():
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing")
        if (found := sha256(folder / name)) != digest:
            raise UserError(
                f"{folder / name} is truncated or altered (sha256 {found[:12]}…, expected "
                f"{digest[:12]}…): restore the file, nothing was loaded"
            )
    return config


def read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path}: not a safetensors file ({error})") from None


# -- load ------------------------------------------------------------------------------------------


# -- save ------------------------------------------------------------------------------------------


def golden_outputs(task: Task) -> list[list[float]]:
    """The task's golden outputs, on the CPU in float32, evaluation mode."""
    task = task.eval().float().cpu()
    with torch.no_grad():
        outputs = task.golden().flatten(1)
        return [[round(value, 5) for value in row] for row in outputs.tolist()]


def _plain(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as safetensors wants them: not channels_last, and tied ones each for itself."""
    seen: set[int] = set()
    plain = {}
    for name, tensor in state.items():
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
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / (WEIGHTS + ".part")
    save_file(_plain(task.network.state_dict()), partial)
    args = {name: value for name, value in task.hparams.items() if name != "network"}
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
    os.replace(partial, folder / WEIGHTS)
    write_json(folder / CONFIG, complete)
    return complete
