"""Trained tasks from a name, a folder or a ``.ckpt``, and weights for a task that is there."""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from zoo import networks
from zoo.checkpoints.rebuild import load_state, rebuild, task_class
from zoo.checkpoints.store import CONFIG, WEIGHTS, folder_of, read_weights, verify
from zoo.core.text import shown
from zoo.errors import UserError
from zoo.networks.layers import adapt_input, adapt_statistics
from zoo.recipes import trained_by
from zoo.tasks.base import Task, read_checkpoint


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
        normalized by ``.data_info["mean"]`` and ``.data_info["std"]``.

    Raises:
        UserError: no such checkpoint, or a file of it is altered.
    """
    _check_number("num_classes", num_classes, 0)
    _check_number("in_channels", in_channels, 1)
    if str(source).endswith(".ckpt"):
        task = _from_lightning(Path(source))
    else:
        folder = folder_of(source)
        config, weights = verify(folder), read_weights(folder / WEIGHTS)
        task = rebuild(config["task"], config["network"], weights, str(folder / CONFIG))
        load_state(task.network, weights, str(folder / WEIGHTS))
        task.data_info = config["data"]
    fresh: list[str] = []
    if in_channels is not None:
        fresh += _adapt_stem(task, in_channels)
    if num_classes is not None:
        fresh += _renew_head(task, num_classes)
    if fresh:
        task.hparams["network"] = networks.describe(task.network)
        rank_zero_info(f"zoo.load({str(source)!r}): not loaded: {'; '.join(fresh)}")
    return task.eval()


def _check_number(name: str, value: int | None, least: int) -> None:
    if value is not None and (not isinstance(value, int) or value < least):
        raise UserError(f"zoo.load: {name} is {shown(value)}: give a whole number from {least} up")


def _from_lightning(path: Path) -> Task:
    """The task of a ``.ckpt``, with its weights."""
    content = read_checkpoint(path)
    cls = task_class(content.get("task"), str(path))
    args = dict(content.get("hyper_parameters", {}))
    if (network := args.pop("network", None)) is None:
        raise UserError(
            f"{path} was trained on a network that is not the zoo's: pass it, "
            f"{cls.__name__}.load_from_checkpoint(path, network=...)"
        )
    state = content["state_dict"]
    task = rebuild({"name": cls.__name__, "args": args}, network, state, str(path))
    task.on_load_checkpoint(content)
    load_state(task, state, str(path))
    task.data_info = content.get("data", {})
    return task


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
    network: nn.Module = task.network  # type: ignore[assignment]
    load_state(network, read_weights(folder / WEIGHTS), str(folder / WEIGHTS))


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
    detail = ", ".join(
        f"{key} {shown(theirs[key])} there and {shown(ours.get(key))} here" for key in differ
    )
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
    if task.data_info:
        task.data_info = {
            **task.data_info,
            "mean": adapt_statistics(task.data_info["mean"], in_channels),
            "std": adapt_statistics(task.data_info["std"], in_channels),
            "input_shape": [in_channels, *task.data_info["input_shape"][1:]],
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
    if task.data_info:
        task.data_info = {**task.data_info, "classes": [str(i) for i in range(num_classes)]}
    renewed = ", ".join(f"{head}.{name}" for name, _ in network.get_classifier().named_parameters())
    return [f"{renewed} fresh for {num_classes} classes, where there were {old}"]
