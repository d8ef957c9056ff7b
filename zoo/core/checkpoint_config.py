"""What a checkpoint's ``config.json`` and the shipped folder's ``MANIFEST.json`` hold.

The types are checked wherever one of the two is read, and nowhere else: what has passed is what
they say.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NotRequired, TypedDict

from zoo.core.files import read_json
from zoo.core.renamed import renamed_network, renamed_task
from zoo.core.schema import Count, Positive, Sha256, Size, check
from zoo.core.text import counted
from zoo.errors import UserError

CONFIG, MANIFEST = "config.json", "MANIFEST.json"
Metrics = dict[str, float]


class Part(TypedDict):
    """A task or a network, by its name in the registry."""

    name: str
    args: dict[str, Any]


class Data(TypedDict, total=False):
    """What a network was trained on, as its data module describes it."""

    name: str
    classes: list[str]
    mean: list[float]
    std: list[Positive]
    input_shape: list[Size]
    crop_pct: Positive
    interpolation: str
    vocabulary: str
    sha256: dict[str, str]
    instead_of: str


class Run(TypedDict, total=False):
    """How the weights came about."""

    recipe: str | None
    command: str
    date: str
    seed: int | bool | None
    epochs: Count
    steps: Count
    wall_time_s: float
    hardware: str
    precision: str
    versions: dict[str, str]


class Seed(TypedDict):
    """One of several runs of a recipe."""

    seed: int | bool | None
    metrics: Metrics


class Sets(TypedDict):
    """Thresholds of prediction sets by coverage, as text: ``{"0.95": 0.98}``."""

    aps: dict[str, float]
    lac: dict[str, float]


class Calibration(TypedDict):
    """What was fitted to a classifier's logits on held-out images, after training."""

    split: str
    images: Count
    temperature: Positive
    confidence_p: Size | None  # of MaxLogit-pNorm; null: the maximum probability is as good
    sets: Sets


class Config(TypedDict):
    """What a checkpoint says of itself; the first four keys are what loading needs."""

    task: Part
    network: Part
    data: Data
    weights_sha256: Sha256
    name: NotRequired[str]
    parameters: NotRequired[Count]
    golden: NotRequired[list[list[float]]]
    headline: NotRequired[str]
    metrics: NotRequired[Metrics]
    samples: NotRequired[dict[str, Count]]
    seeds: NotRequired[list[Seed]]
    run: NotRequired[Run]
    global_step: NotRequired[Count]
    recipe: NotRequired[dict[str, Any]]
    proof: NotRequired[dict[str, Any]]
    calibration: NotRequired[Calibration]
    text: NotRequired[dict[str, str]]
    judged: NotRequired[dict[str, Any]]


def check_data(data: Any, source: str) -> None:
    """Checks a description of data.

    Raises:
        UserError: it has another form, or statistics of another number of channels than images.
    """
    check(data, Data, source, "data")
    channels = data["input_shape"][0] if data.get("input_shape") else None
    for name in ("mean", "std"):
        if channels is not None and name in data and len(data[name]) != channels:
            numbers = counted(len(data[name]), "number")
            raise UserError(
                f"{source}: data.{name} has {numbers} for {counted(channels, 'channel')}"
            )


def read_config(folder: Path) -> dict[str, Any]:
    """Reads a checkpoint's ``config.json``, an argument of an earlier form under its present name.

    Raises:
        UserError: it is missing, not JSON, or of another form.
    """
    file = folder / CONFIG
    config = read_json(file)
    check(config, Config, str(file))
    check_data(config["data"], str(file))
    task = config["task"]
    return {
        **config,
        "task": {**task, "args": renamed_task(task["name"], task["args"])},
        "network": renamed_network(config["network"]),
    }


def read_manifest(folder: Path) -> dict[str, str]:
    """Reads the sha256 of every file of the shipped checkpoints, by ``NAME/FILE``.

    Raises:
        UserError: it is not JSON, or of another form.
    """
    file = folder / MANIFEST
    if not file.is_file():
        return {}
    listed: dict[str, str] = read_json(file)
    check(listed, dict[str, Sha256], str(file))
    return listed
