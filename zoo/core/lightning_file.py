"""Reads a Lightning ``.ckpt`` that anybody may have written: nothing in it runs."""

from __future__ import annotations

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import torch
from torch import Tensor

from zoo.core.checkpoint_config import Part, check_data
from zoo.core.files import is_file, read_text, sha256, write_text
from zoo.core.renamed import renamed_network, renamed_task
from zoo.core.schema import Count, Size, check
from zoo.core.text import first_line, shown
from zoo.errors import UserError


# What of a file's content is relied on; the trainer's own state is Lightning's.
class Arguments(TypedDict):
    network: NotRequired[Part | None]


class Content(TypedDict):
    task: NotRequired[str]
    epoch: NotRequired[Count]
    global_step: NotRequired[Count]
    lora_rank: NotRequired[Size]
    hyper_parameters: NotRequired[Arguments]


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a ``.ckpt``; only tensors and plain values are unpickled.

    Its sha256 is compared with the file next to it, where ``fit`` left one, and its entries with
    their own checksums.

    Raises:
        UserError: no such file, a damaged one, or no checkpoint.
    """
    if not is_file(path):
        raise UserError(f"no such checkpoint: {path}")
    _check_sha256(path)
    _check_archive(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own message advises to load it without this protection.
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        held = f"holds {shown(found[1])}, and " if found else ""
        raise UserError(
            f"{path} is not a readable checkpoint: it {held}is refused because a checkpoint holds "
            "tensors and plain values alone; nothing of it was run"
        ) from None
    except Exception as error:  # whatever an unknown pickle raises
        raise UserError(f"{path} is not a readable checkpoint: {first_line(error)}") from None
    if not isinstance(content, dict) or "state_dict" not in content:
        raise UserError(f"{path} is not a Lightning checkpoint: it has no state_dict")
    known = {key: content[key] for key in Content.__annotations__ if key in content}
    if not isinstance(hparams := known.get("hyper_parameters", {}), dict):
        raise UserError(f"{path}: hyper_parameters is {shown(hparams)}, expected an object")
    # Other arguments of a task of somebody's own may hold more than JSON has.
    known["hyper_parameters"] = {k: v for k, v in hparams.items() if k == "network"}
    check(known, Content, str(path))
    check_data(content.get("data", {}), str(path))
    check_state(content["state_dict"], path)
    if hparams.get("network"):
        hparams["network"] = renamed_network(hparams["network"])
    if hparams:
        content["hyper_parameters"] = renamed_task(content.get("task", ""), hparams)
    return content


def check_state(state: Any, path: Path) -> None:
    """Checks that a state dict is one: tensors by name.

    Raises:
        UserError: it is not.
    """
    if not isinstance(state, dict):
        raise UserError(f"{path}: state_dict is {shown(state)}, expected tensors by name")
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise UserError(
                f"{path}: state_dict has {shown(tensor)} as {shown(name)}, expected a tensor"
            )


def checksum_file(path: Path) -> Path:
    """Names the file next to a checkpoint that holds its sha256, in the form of ``sha256sum``."""
    return path.with_name(path.name + ".sha256")


def write_checksum(path: Path, digest: str) -> None:
    """Writes a checkpoint's sha256 next to it."""
    write_text(checksum_file(path), f"{digest}  {path.name}\n")


def _check_sha256(path: Path) -> None:
    checksums = checksum_file(path)
    if not checksums.is_file():
        return
    expected = read_text(checksums).split()[:1]
    if [found := sha256(path)] != expected:
        raise UserError(
            f"{path} is truncated or altered (sha256 {found[:12]}…, {checksums.name} says "
            f"{shown(''.join(expected)[:12])}): restore the file, nothing was loaded"
        )


def _check_archive(path: Path) -> None:
    """Whether it is a zip as torch writes them: nothing compressed, every entry's checksum right.

    torch does not look at these checksums itself, and would unpack an entry of any size.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            packed = [entry for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
            if packed or sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise UserError(f"{path} is not a checkpoint of torch: its entries are compressed")
            damaged = archive.testzip()
    except UserError:
        raise
    except Exception as error:  # zipfile has many for a broken archive
        raise UserError(f"{path} is not a readable checkpoint: {first_line(error)}") from None
    if damaged is not None:
        raise UserError(
            f"{path} is altered: the checksum of {shown(damaged)} in it does not match: restore "
            "the file, nothing was loaded"
        )
