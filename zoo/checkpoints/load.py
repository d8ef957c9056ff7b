"""Trained tasks from a name, a folder or a file, and weights for a task that is there."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from zoo import networks
from zoo.checkpoints.rebuild import load_state, rebuild, task_class
from zoo.checkpoints.source import Source, read_source
from zoo.checkpoints.store import folder_of
from zoo.checkpoints.transfer import Transferred, transfer
from zoo.core.text import shown
from zoo.errors import UserError
from zoo.networks.base import classifier_name
from zoo.networks.layers import adapt_statistics
from zoo.recipes import checkpoint_configs, trained_by
from zoo.tasks.base import Task
from zoo.tasks.image_classifier import ImageClassifier


def load(
    source: str | Path,
    *,
    network: nn.Module | None = None,
    num_classes: int | None = None,
    in_channels: int | None = None,
    **overrides: Any,
) -> Task:
    """Loads a trained task in evaluation mode, on the CPU; ``.network`` is the plain module.

    What was and was not loaded is logged as a table, unless it is all there is.

    Args:
        source: a shipped checkpoint's name, the folder of a run or of a checkpoint, a ``.ckpt``
            that ``fit`` wrote, ``timm:NAME`` or ``hf-hub:USER/NAME``; or a ``.safetensors`` or
            ``.pth`` with a network's weights.
        network: what the weights of a ``.safetensors`` or ``.pth`` belong to, which such a file
            does not say; an image classifier.
        num_classes: renews the head for so many classes, whatever their number was.
        in_channels: adapts the first convolution to so many input channels.
        overrides: arguments of the network in place of the recorded ones, drop rates for example.

    Returns:
        The LightningModule, ready for ``predict``, ``test``, a fit, or a plain forward on images
        normalized by ``.data_info["mean"]`` and ``.data_info["std"]``.

    Raises:
        UserError: no such checkpoint, a file of it is altered, or an argument that the network
            does not have.
    """
    _check_number("num_classes", num_classes, 0)
    _check_number("in_channels", in_channels, 1)
    found = read_source(source)
    task = _rebuilt(found, network, overrides)
    if in_channels is not None:
        _widen_stem(task, in_channels)
    if num_classes is not None:
        _renew_head(task, num_classes)
    if found.content is not None:
        task.on_load_checkpoint(found.content)
    task.data_info = _adapted_data(found.data, num_classes, in_channels)
    if network is None and num_classes is None and in_channels is None and not overrides:
        _load_all(task, found)
        if isinstance(task, ImageClassifier):
            task.calibration = found.calibration  # of these very weights
        return task.eval()
    report = transfer(task.network, found.state, str(source), new_head=num_classes is not None)
    task.hparams["network"] = networks.describe(task.network)
    if not report.whole:
        rank_zero_info(f"zoo.load: {report}")
    return task.eval()


def _rebuilt(found: Source, network: nn.Module | None, overrides: dict[str, Any]) -> Task:
    """The task of the weights, with a network whose weights are fresh."""
    if network is not None:
        if found.network is not None or overrides:
            raise UserError(
                f"zoo.load: {found.name} says itself what its network is: leave out network="
                if found.network is not None
                else "zoo.load: give the drop rates to network= itself"
            )
        return ImageClassifier(network)
    if found.task is None:
        raise UserError(
            f"{found.name} holds weights alone: give the network that they belong to, "
            f"zoo.load({found.name!r}, network=...), or --recipe NAME --init_from FILE"
        )
    if found.network is None:
        cls = task_class(found.task["name"], found.name)
        raise UserError(
            f"{found.name} was trained on a network that is not the zoo's: pass it, "
            f"{cls.__name__}.load_from_checkpoint(path, network=...)"
        )
    args = {**found.network["args"], **overrides}
    return rebuild(found.task, {**found.network, "args": args}, found.state, found.described_in)


def _load_all(task: Task, found: Source) -> None:
    """Every tensor of the weights into the network, and the task's own where there are any."""
    if found.content is None:
        load_state(task.network, found.state, found.name)
        return
    own = {k: v for k, v in found.content["state_dict"].items() if not k.startswith("network.")}
    state = {f"network.{name}": tensor for name, tensor in found.state.items()}
    load_state(task, state | own, found.name)


def load_weights(task: nn.Module, source: str | Path) -> dict[str, Any]:
    """Loads weights into the network of a task that has the same one, in place.

    Args:
        task: with a ``network``.
        source: as ``load`` takes it.

    Returns:
        What they were trained on, as the checkpoint describes it.

    Raises:
        UserError: the task has another network, or a file is altered.
    """
    found = read_source(source)
    shipped = checkpoint_configs().get(str(source))
    recipe = trained_by(shipped) if shipped else None
    advice = f"--recipe {recipe} --ckpt_path {folder_of(source).name}" if recipe else ""
    check_same_network(found.network, task, Path(found.name), advice)
    network: nn.Module = task.network  # type: ignore[assignment]
    load_state(network, found.state, found.name)
    return found.data


def initialize(task: Task, source: str | Path, data: dict[str, Any]) -> Transferred:
    """Starts a task from trained weights, in place, whatever they were trained on.

    The head stays fresh where the classes are others, though they be as many.

    Args:
        task: its network has the sizes of the weights' network.
        source: as ``load`` takes it.
        data: what the task is to be trained on, as a data module describes it.

    Returns:
        What was loaded and what was not.

    Raises:
        UserError: the weights do not fit, or stand for other characters.
    """
    found = read_source(source)
    if "vocabulary" in found.data:  # whose characters the embeddings stand for
        check_same_classes(found.data, data, source)
    theirs, ours = found.data.get("classes"), data.get("classes")
    others = theirs is not None and ours is not None and list(theirs) != list(ours)
    new_head = others and classifier_name(task.network) is not None
    return transfer(task.network, found.state, str(source), new_head)


def check_same_network(
    recorded: Mapping[str, Any] | None, task: nn.Module, source: Path, advice: str = ""
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


def _check_number(name: str, value: int | None, least: int) -> None:
    if value is not None and (not isinstance(value, int) or value < least):
        raise UserError(f"zoo.load: {name} is {shown(value)}: give a whole number from {least} up")


def _widen_stem(task: Task, in_channels: int) -> None:
    """Gives the first convolution room for other channels; its weights follow."""
    network = task.network
    stem = next((m for m in network.modules() if isinstance(m, nn.Conv2d)), None)
    if stem is None:
        raise UserError(f"{type(network).__name__} takes no images: it has no channels to adapt")
    shape = (stem.out_channels, in_channels, *stem.kernel_size)
    stem.weight = nn.Parameter(torch.zeros(shape))
    stem.in_channels = in_channels
    networks.amend(network, in_channels=in_channels)


def _renew_head(task: Task, num_classes: int) -> None:
    network: Any = task.network
    if not hasattr(network, "get_classifier"):
        raise UserError(f"{type(network).__name__} has no classes to renew")
    if classifier_name(network) is None:
        raise UserError(
            f"{type(network).__name__} has several classifiers: renew them yourself, "
            "model.network.reset_classifier"
        )
    network.reset_classifier(num_classes)
    networks.amend(network, num_classes=num_classes)


def _adapted_data(
    data: dict[str, Any], num_classes: int | None, in_channels: int | None
) -> dict[str, Any]:
    """What the weights were trained on, as it is for another head and stem."""
    data = dict(data)
    if data and num_classes is not None:
        data["classes"] = [str(index) for index in range(num_classes)]
    if in_channels is not None and "input_shape" in data:
        data |= {key: adapt_statistics(data[key], in_channels) for key in ("mean", "std")}
        data["input_shape"] = [in_channels, *data["input_shape"][1:]]
    return data
