"""One entry for each task, data set and command: names as strings, imported when they are needed.

Adding a task or a data set adds its files and its entry here, and edits nothing else. What a
checkpoint may name is a key of these dictionaries, never an import path.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeVar

from zoo.core.text import nearest
from zoo.errors import UserError

Entry = TypeVar("Entry")


@dataclass(frozen=True)
class TaskEntry:
    """What the zoo needs to know of a task.

    Every name is ``package.module:attribute``.
    """

    task: str  # the LightningModule
    card: str  # how its checkpoints are described: a zoo.checkpoints.card.Card
    measure: str  # what is measured of trained weights: (task, data, stated) -> stated
    usage: str  # a line of Python that uses the loaded ``model``
    # What a file that leaves the zoo takes and gives: (task, data, preprocessing, probabilities) ->
    # zoo.checkpoints.served.Served; None for a task that is not exported.
    serve: str | None = None


@dataclass(frozen=True)
class DataEntry:
    """What the zoo needs to know of a data set."""

    data: str  # the LightningDataModule, package.module:attribute
    out_of_distribution: str | None = None  # the data set of its OOD images
    reference: str | None = None  # the shipped classifier that measures generated images of it
    hub: str | None = None  # its name on Hugging Face's hub


@dataclass(frozen=True)
class CommandEntry:
    """A verb of ``python -m zoo``."""

    run: str  # (arguments) -> exit code, package.module:attribute
    help: str


TASKS: dict[str, TaskEntry] = {
    "GAN": TaskEntry(
        task="zoo.tasks.gan:GAN",
        card="zoo.checkpoints.card:GANCard",
        measure="zoo.evaluation.generator:measure",
        serve="zoo.checkpoints.served:serve_generator",
        usage="images = model.sample([0] * 8, seed=0)  # of the first class, in [0, 1]",
    ),
    "ImageClassifier": TaskEntry(
        task="zoo.tasks.image_classifier:ImageClassifier",
        card="zoo.checkpoints.card:ClassifierCard",
        measure="zoo.evaluation.classifier:measure",
        serve="zoo.checkpoints.served:serve_classifier",
        usage="logits = model(images)  # normalized by model.data_info's mean and std",
    ),
    "LanguageModel": TaskEntry(
        task="zoo.tasks.language_model:LanguageModel",
        card="zoo.checkpoints.card:LanguageCard",
        measure="zoo.evaluation.language:measure",
        serve="zoo.checkpoints.served:serve_language_model",
        usage='print(model.generate("The ", max_new_tokens=200, seed=0))',
    ),
    "Segmenter": TaskEntry(
        task="zoo.tasks.segmenter:Segmenter",
        card="zoo.checkpoints.card:SegmenterCard",
        measure="zoo.evaluation.segmenter:measure",
        serve="zoo.checkpoints.served:serve_classifier",
        usage="masks = model(images).argmax(1)  # of normalized images, classes of pixels",
    ),
}

DATA: dict[str, DataEntry] = {
    "CIFAR10": DataEntry(
        "zoo.data.cifar:CIFAR10", out_of_distribution="Digits", hub="uoft-cs/cifar10"
    ),
    "CIFAR100": DataEntry(
        "zoo.data.cifar:CIFAR100", out_of_distribution="Digits", hub="uoft-cs/cifar100"
    ),
    "Digits": DataEntry("zoo.data.digits:Digits", out_of_distribution="FashionMNIST"),
    "DigitMasks": DataEntry("zoo.data.digit_masks:DigitMasks"),
    "FashionMNIST": DataEntry(
        "zoo.data.fashion_mnist:FashionMNIST",
        out_of_distribution="Digits",
        reference="resnet_fmnist",
        hub="zalando-datasets/fashion_mnist",
    ),
    "ImageFolder": DataEntry("zoo.data.image_folder:ImageFolder", out_of_distribution="Digits"),
    "PythonTopics": DataEntry("zoo.data.shakespeare:PythonTopics"),
    "Shakespeare": DataEntry("zoo.data.shakespeare:Shakespeare", hub="karpathy/tiny_shakespeare"),
    "TextFile": DataEntry("zoo.data.text:TextFile"),
}

COMMANDS: dict[str, CommandEntry] = {
    "fit": CommandEntry("zoo.cli.start:fit", "train a recipe: python -m zoo fit --recipe NAME"),
    "validate": CommandEntry("zoo.cli.start:validate", "measure on the validation data"),
    "test": CommandEntry("zoo.cli.start:test", "measure on the test data"),
    "predict": CommandEntry(
        "zoo.commands.predict:main", "predict the classes of image files, or of the test images"
    ),
    "embed": CommandEntry("zoo.commands.embed:main", "write the pooled features of image files"),
    "info": CommandEntry(
        "zoo.commands.info:main", "parameters, multiply-adds, memory and throughput of a network"
    ),
    "audit": CommandEntry(
        "zoo.commands.audit:main", "check normalization and dropout of any model"
    ),
    "uncertainty": CommandEntry(
        "zoo.commands.uncertainty:main",
        "calibration, error detection and OOD detection of trained weights",
    ),
    "compare": CommandEntry(
        "zoo.commands.compare:main", "runs side by side: settings, results and curves"
    ),
    "study": CommandEntry(
        "zoo.commands.study:main",
        "experiments and claims of course notes on regularization, each with a verdict",
    ),
    "sample": CommandEntry(
        "zoo.commands.sample:main", "generated text or images of trained weights"
    ),
    "list": CommandEntry(
        "zoo.commands.list:main", "recipes, and what was measured of their shipped weights"
    ),
    "publish": CommandEntry(
        "zoo.commands.publish:main", "turn a finished run into a shipped checkpoint"
    ),
    "export": CommandEntry(
        "zoo.commands.export:main",
        "write a network as ONNX, torch.export or AOTInductor, and check it",
    ),
    "verify": CommandEntry(
        "zoo.commands.verify:main", "check shipped checkpoints: checksums, stored outputs"
    ),
}


def load(name: str) -> Any:
    """Imports the object that ``package.module:attribute`` names."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


def find(entries: Mapping[str, Entry], name: Any, kind: str, where: str = "") -> Entry:
    """Finds an entry by its name.

    Args:
        entries: ``TASKS``, ``DATA`` or ``COMMANDS``.
        name: of the entry.
        kind: what a message calls it, ``"task"``.
        where: a file that mentions it.

    Raises:
        UserError: there is none of this name.
    """
    if name in entries:
        return entries[name]
    raise UserError(
        f"{f'{where}: ' if where else ''}no {kind} named {name!r}{nearest(str(name), entries)} "
        f"(there are {', '.join(entries)})"
    )
