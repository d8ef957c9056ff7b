"""Save, load and verify weights: ``model.safetensors`` + ``config.json``, Hugging Face's layout.

``config.json`` names task and network by registry, never by import path, and carries the resolved
recipe, what was measured, and how the run was made. Nothing of a shipped checkpoint is unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from zoo import networks, tasks
from zoo.errors import UserError
from zoo.networks.layers import adapt_input, adapt_statistics
from zoo.recipes import nearest, shipped_folder, trained_by
from zoo.tasks.base import Task, read_checkpoint

WEIGHTS, CONFIG, CARD, MANIFEST = "model.safetensors", "config.json", "README.md", "MANIFEST.json"
TASKS: dict[str, type[Task]] = {
    task.__name__: task for task in (tasks.GAN, tasks.ImageClassifier, tasks.LanguageModel)
}


# -- files -----------------------------------------------------------------------------------------


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
    return dict(config)


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


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path}: not a safetensors file ({error})") from None


# -- load ------------------------------------------------------------------------------------------


def load(
    source: str | Path, *, num_classes: int | None = None, in_channels: int | None = None
) -> Task:
    """A trained task in evaluation mode, on the CPU; ``.network`` is the plain module.

    Args:
        source: a shipped checkpoint's name, a folder, or a ``.ckpt`` file that ``fit`` wrote.
        num_classes: renews the head for so many classes, whatever their number was.
        in_channels: adapts the first convolution to so many input channels.

    Returns:
        The LightningModule, ready for ``predict``, ``test``, a fit, or a plain forward on images
        normalised by ``.data["mean"]`` and ``.data["std"]``.

    Raises:
        UserError: no such checkpoint, or a file of it is altered.
    """
    if str(source).endswith(".ckpt"):
        path = Path(source)
        content = read_checkpoint(path)
        task = _task_of(path, content).load_from_checkpoint(path)
        task.data = content.get("data", {})
    else:
        folder = folder_of(source)
        config = verify(folder)
        task = build(config)
        task.network.load_state_dict(_read_weights(folder / WEIGHTS))
        task.data = config["data"]
    fresh: list[str] = []
    if in_channels is not None:
        fresh += _adapt_stem(task, in_channels)
    if num_classes is not None:
        fresh += _renew_head(task, num_classes)
    if fresh:
        task.hparams["network"] = networks.describe(task.network)
        rank_zero_info(f"zoo.load({str(source)!r}): not loaded: {'; '.join(fresh)}")
    return task.eval()


def _task_of(path: Path, content: dict[str, Any]) -> type[Task]:
    name = content.get("task")
    if name not in TASKS:
        raise UserError(f"{path} was not written by one of the zoo's tasks ({', '.join(TASKS)})")
    return TASKS[name]


def build(config: dict[str, Any]) -> Task:
    """The task and network that a config.json describes, with fresh weights."""
    task = config["task"]
    if task["name"] not in TASKS:
        raise UserError(f"no task named {task['name']!r}: choose one of {', '.join(TASKS)}")
    return TASKS[task["name"]](networks.build(config["network"]), **task["args"])


def load_weights(task: nn.Module, source: str | Path) -> None:
    """Loads a checkpoint's verified weights into the network of a task, in place.

    Raises:
        UserError: the task has another network, or a file is altered.
    """
    folder = folder_of(source)
    config = verify(folder)
    recipe = trained_by(config)
    advice = f"--recipe {recipe} --ckpt_path {folder.name}" if recipe else ""
    check_same_network(config["network"], task, folder, advice)
    task.network.load_state_dict(_read_weights(folder / WEIGHTS))  # type: ignore[union-attr]


def check_same_network(
    recorded: dict[str, Any] | None, task: nn.Module, source: Path, advice: str = ""
) -> None:
    """Compares a checkpoint's network with that of a task, where both are the zoo's.

    Raises:
        UserError: they differ; the message says in what.
    """
    asked = networks.describe(getattr(task, "network", None))
    if recorded is None or asked is None:
        return
    # An argument that is younger than the checkpoint had its default then.
    theirs, ours = {**networks.defaults(recorded["name"]), **recorded["args"]}, asked["args"]
    if recorded["name"] == asked["name"] and theirs == ours:
        return
    differ = [key for key in theirs if theirs[key] != ours.get(key)]
    detail = ", ".join(f"{key} {theirs[key]} there and {ours.get(key)} here" for key in differ)
    if source.suffix == ".ckpt":
        advice = f"--recipe {source.parent.parent / 'config.yaml'}"
    raise UserError(
        f"{source} holds another network ({recorded['name']}: {detail}): give its own options"
        + (f", or {advice}" if advice else "")
    )


def check_same_classes(known: dict[str, Any], data: dict[str, Any], source: str | Path) -> None:
    """Compares the classes, or the vocabulary, of a checkpoint with those of a data module.

    Args:
        known: what the checkpoint says of the data it was trained on.
        data: what the data module says of itself.
        source: the checkpoint, for the message.

    Raises:
        UserError: they differ, or stand in another order.
    """
    for kind, one in (("classes", "class"), ("vocabulary", "character")):
        theirs, ours = known.get(kind), data.get(kind)
        if theirs is None or ours is None or list(theirs) == list(ours):
            continue
        pairs = enumerate(zip_longest(theirs, ours))
        number, (there, here) = next(pair for pair in pairs if pair[1][0] != pair[1][1])
        raise UserError(
            f"{source} was trained on other {kind} than {data.get('name', 'the data')} has: {one} "
            f"{number} is {there!r} there and {here!r} here"
        )


def _adapt_stem(task: Task, in_channels: int) -> list[str]:
    network = task.network
    convolutions = ((n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d))
    name, stem = next(convolutions, ("", None))
    if stem is None:
        raise UserError(f"{type(network).__name__} takes no images: it has no channels to adapt")
    old = stem.in_channels
    if old == in_channels:
        return []
    with torch.no_grad():
        stem.weight = nn.Parameter(adapt_input(stem.weight, in_channels))
    stem.in_channels = in_channels
    networks.amend(network, in_channels=in_channels)
    if task.data:
        task.data = {
            **task.data,
            "mean": adapt_statistics(task.data["mean"], in_channels),
            "std": adapt_statistics(task.data["std"], in_channels),
            "input_shape": [in_channels, *task.data["input_shape"][1:]],
        }
    return [f"{name}.weight is adapted from {old} to {in_channels} input channels"]


def _renew_head(task: Task, num_classes: int) -> list[str]:
    network: Any = task.network
    if not hasattr(network, "get_classifier"):
        raise UserError(f"{type(network).__name__} has no classes to renew")
    old = network.num_classes
    named = (name for name, m in network.named_modules() if m is network.get_classifier())
    head = next(named, None)
    if head is None:
        raise UserError(
            f"{type(network).__name__} has several classifiers: renew them yourself, "
            "model.network.reset_classifier"
        )
    network.reset_classifier(num_classes)
    networks.amend(network, num_classes=num_classes)
    if task.data:
        task.data = {**task.data, "classes": [str(i) for i in range(num_classes)]}
    renewed = ", ".join(f"{head}.{name}" for name, _ in network.get_classifier().named_parameters())
    return [f"{renewed} fresh for {num_classes} classes, where there were {old}"]


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
        "data": task.data,
        **config,
        "golden": golden_outputs(task),
        "weights_sha256": sha256(partial),
    }
    os.replace(partial, folder / WEIGHTS)
    write_json(folder / CONFIG, complete)
    return complete
