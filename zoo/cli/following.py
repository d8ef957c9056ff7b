"""Fills in a network's arguments from the data, where no recipe and no option gives them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any

from jsonargparse import Namespace

from zoo.data.module import DataModule

# What ``DataModule.network_arguments`` may know.
FOLLOWING = {"num_classes", "in_channels", "image_size", "vocab_size", "context_length"}


def make_data(settings: Any, given: Callable[[], Any]) -> DataModule | None:
    """Builds the data module, before the model that may follow from it.

    The number of channels goes the other way where the network has one and the data can be read
    with either: ``in_channels: 1`` reads a folder of photographs as grayscale.

    Args:
        settings: model and data, with every default.
        given: tells the same without defaults: what a recipe or the command line says.

    Returns:
        The data module; None for one that is not of the zoo's kind, or takes more than JSON values.
    """
    data = settings.get("data")
    kind = _named(data.get("class_path")) if hasattr(data, "get") else None
    if not (isinstance(kind, type) and issubclass(kind, DataModule)):
        return None
    arguments = data["init_args"]
    if any(isinstance(value, Namespace) for value in vars(arguments).values()):
        return None  # made of other classes, which jsonargparse builds first
    if arguments.get("channels", 0) is None:
        arguments["channels"] = given().get("model.init_args.network.init_args.in_channels")
    return kind(**arguments.as_dict())


def follow_data(settings: Any, given: Callable[[], Any], data: DataModule) -> None:
    """Fills in a network's arguments that follow from the data, in place.

    Args:
        settings, given: as ``make_data`` has them.
        data: is asked only where something is missing.

    Raises:
        UserError: the data are not available, or faulty.
    """
    network = settings.get("model.init_args.network")
    made = _named(network.get("class_path")) if hasattr(network, "get") else None
    if made is None:
        return
    arguments, parameters = network["init_args"], inspect.signature(made).parameters
    names = FOLLOWING & parameters.keys()
    missing = {name for name in names if arguments.get(name) == parameters[name].default}
    if missing:  # or given as their defaults are
        typed = given().get("model.init_args.network.init_args")
        missing -= set(vars(typed)) if typed else set()
    if missing:
        known = data.network_arguments()
        for name in missing & known.keys():
            arguments[name] = known[name]


def _named(path: Any) -> Any:
    """The class or function of an import path, which jsonargparse has found already."""
    if not isinstance(path, str):
        return None
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)
