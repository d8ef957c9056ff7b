"""Reads weights by one set of names for ``zoo.load``, --init_from and --weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from torch import Tensor, nn

from zoo import networks
from zoo.checkpoints.rebuild import rebuild_network
from zoo.checkpoints.store import (
    CONFIG,
    WEIGHTS,
    folder_of,
    is_shipped,
    names,
    read_weights,
    verify,
)
from zoo.core.checkpoint_config import Part, check_data, read_config
from zoo.core.files import is_file, is_folder, read_json
from zoo.core.lightning_file import check_state, read_checkpoint
from zoo.core.schema import Count, check
from zoo.core.text import first_line, shown
from zoo.errors import UserError
from zoo.networks.lora import merged_state
from zoo.networks.timm_network import timm_network
from zoo.recipes import trained_by

BARE = (".safetensors", ".pth", ".pt", ".bin", ".tar")  # weights alone
TIMM, HUB = "timm:", "hf-hub:"


@dataclass(frozen=True)
class Source:
    """Weights, and what their file says of them."""

    name: str  # the file that holds them, for messages
    described_in: str  # the file that says what they are
    state: Mapping[str, Tensor]  # by the network's parameter names
    network: Part | None = (
        None  # what rebuilds the network; None where the file holds weights alone
    )
    task: Part | None = None
    data: dict[str, Any] = field(default_factory=dict)  # what they were trained on
    content: dict[str, Any] | None = None  # of a ``.ckpt``
    calibration: dict[str, Any] = field(default_factory=dict)  # fitted to a classifier's logits


def read_source(source: str | Path) -> Source:
    """Reads weights by any name that the zoo knows.

    Args:
        source: a shipped checkpoint's name; the folder of a run (its last epoch) or of a
            checkpoint; a ``.ckpt``; a ``.safetensors`` or ``.pth`` with the network's parameter
            names; ``timm:NAME`` or ``hf-hub:USER/NAME``, which are downloaded.

    Returns:
        The weights; of a run trained with LoRA, merged.

    Raises:
        UserError: there is no such source, it is damaged, or it cannot be downloaded.
    """
    text = str(source)
    if text.startswith(TIMM):
        return _from_timm(text)
    if text.startswith(HUB):
        return _from_folder(_download(text), text)
    path = Path(text)
    if path.suffix == ".ckpt":
        return _from_lightning(path)
    if path.suffix in BARE:
        return _from_file(path)
    if text not in names() and (file := last_of_run(path)) is not None:
        return _from_lightning(file)
    folder = folder_of(source)
    return _from_folder(folder, str(folder / WEIGHTS))


def last_of_run(folder: Path) -> Path | None:
    """Finds the last checkpoint of a run, by its folder or that of all runs of its name."""
    if not is_folder(folder) or is_file(folder / CONFIG):
        return None
    runs = [path for path in folder.glob("version_*") if path.name[8:].isdigit()]
    newest_first = sorted(runs, key=lambda path: int(path.name[8:]), reverse=True)
    files = [run / "checkpoints" / "last.ckpt" for run in (folder, *newest_first)]
    return next((file for file in files if file.is_file()), None)


def recipe_of(source: str | Path) -> str | None:
    """Finds the recipe that trained some weights, as their run or checkpoint records it."""
    path = Path(source)
    if str(source) in names():
        return trained_by(read_config(folder_of(source)))
    file = path if path.suffix == ".ckpt" else last_of_run(path)
    if file is not None:
        config = file.parent.parent / "config.yaml"
        return str(config) if is_file(config) else None
    return trained_by(read_config(path)) if is_file(path / CONFIG) else None


def _from_lightning(path: Path) -> Source:
    content = read_checkpoint(path)
    args = dict(content.get("hyper_parameters", {}))
    network = args.pop("network", None)
    task: Part = {"name": content.get("task", ""), "args": args}
    state = content["state_dict"]
    mine = {
        name.removeprefix("network."): tensor
        for name, tensor in state.items()
        if name.startswith("network.")
    }
    name, data = str(path), content.get("data", {})
    try:
        plain = merged_state(mine)
    except (KeyError, RuntimeError) as error:
        raise UserError(f"{path}: the LoRA matrices are damaged: {first_line(error)}") from None
    return Source(name, name, plain, network, task, data, content)


def _from_file(path: Path) -> Source:
    """Weights alone, as torch.save or safetensors wrote them; nothing but tensors is unpickled."""
    from timm.models import load_state_dict

    if not is_file(path):
        raise UserError(f"no such file: {path}")
    try:
        # Knows the keys under which training scripts nest weights, and DataParallel's prefix.
        state = load_state_dict(str(path), weights_only=True)
    except Exception as error:  # whatever an unknown pickle, or another format, raises
        raise UserError(f"{path} is not a file of weights: {first_line(error)}") from None
    check_state(state, path)
    if state and all(name.startswith("network.") for name in state):
        state = {name.removeprefix("network."): tensor for name, tensor in state.items()}
    return Source(str(path), str(path), state)


def _from_folder(folder: Path, name: str) -> Source:
    """A folder with config.json and model.safetensors, in our form or in timm's."""
    content = {} if is_shipped(folder) else read_json(folder / CONFIG)
    if isinstance(content, dict) and "architecture" in content and "task" not in content:
        return _from_timm_folder(folder, content, name)
    config = verify(folder)
    weights, where = read_weights(folder / WEIGHTS), str(folder / CONFIG)
    return Source(
        name,
        where,
        weights,
        config["network"],
        config["task"],
        config["data"],
        calibration=config.get("calibration", {}),
    )


# -- timm and the Hub ------------------------------------------------------------------------------


def _from_timm(text: str) -> Source:
    import timm

    name = text.removeprefix(TIMM)
    cfg = timm.get_pretrained_cfg(name, allow_unregistered=True)
    classes = cfg.num_classes if cfg is not None else 1000
    network = timm_network(name, pretrained=True, num_classes=classes)
    return _of_timm(text, network, network.state_dict())


class TimmConfig(TypedDict):
    """What timm's ``push_to_hf_hub`` says of a network, as far as it is relied on."""

    architecture: str
    num_classes: NotRequired[Count]
    pretrained_cfg: NotRequired[dict[str, Any]]
    model_args: NotRequired[dict[str, Any] | None]


def _from_timm_folder(folder: Path, content: dict[str, Any], name: str) -> Source:
    """As timm's ``push_to_hf_hub`` lays it out; only model.safetensors is read."""
    where = str(folder / CONFIG)
    check(content, TimmConfig, where)
    cfg = content.get("pretrained_cfg", {})
    weights = read_weights(folder / WEIGHTS)
    args = {
        "name": content["architecture"],
        "num_classes": content.get("num_classes", cfg.get("num_classes", 1000)),
        "in_channels": (cfg.get("input_size") or [3])[0],
        "args": content.get("model_args"),
    }
    network: Any = rebuild_network({"name": "timm_network", "args": args}, weights, where)
    network.pretrained_cfg = {**network.pretrained_cfg, **cfg}
    found = _of_timm(name, network, weights)
    check_data(found.data, where)
    return found


def _of_timm(name: str, network: nn.Module, state: Mapping[str, Tensor]) -> Source:
    cfg: Any = network.pretrained_cfg
    data = {
        "name": cfg.get("tag") or name,
        "classes": _class_names(network),
        "mean": list(cfg["mean"]),
        "std": list(cfg["std"]),
        "input_shape": list(cfg["input_size"]),
        "crop_pct": cfg["crop_pct"],
        "interpolation": cfg["interpolation"],
    }
    description: Any = networks.describe(network)
    task: Part = {"name": "ImageClassifier", "args": {}}
    return Source(name, name, state, description, task, data)


def _class_names(network: Any) -> list[str]:
    """ImageNet's words where timm knows the set of classes, else their numbers."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset(network)
    if subset is None:
        return [str(index) for index in range(network.num_classes)]
    return [str(word) for word in ImageNetInfo(subset).label_descriptions()]


def _download(text: str) -> Path:
    """The files of a repository on the Hub; from the local cache where they are there already."""
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(text.removeprefix(HUB), allow_patterns=[CONFIG, WEIGHTS])
    except Exception as error:  # huggingface_hub and its HTTP client have many
        raise UserError(
            f"{shown(text)} cannot be downloaded: {first_line(error)}: check the name and "
            "the internet connection"
        ) from None
    return Path(folder)
