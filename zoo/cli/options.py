"""The zoo's own options of fit, validate, test and predict: the parser adds them, help prints them.

Importing this file is fast: ``--help`` answers without torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

RECIPE_HELP = "a recipe's name (python -m zoo list) or a YAML file; repeatable, the last one wins"
WEIGHTS_NAMES = (
    "a shipped name, a run's or checkpoint's folder, .ckpt, .safetensors, .pth, timm:NAME or "
    "hf-hub:USER/NAME"
)


@dataclass(frozen=True)
class Option:
    """An option of the command line that is not an argument of model, data or trainer."""

    name: str
    type: Any
    default: Any
    help: str
    metavar: str | None = None
    is_switch: bool = False  # --check_data alone means true
    # The commands that heed it. All four take every option, so that all take the same recipes.
    commands: tuple[str, ...] = ("fit",)

    @property
    def flag(self) -> str:
        return f"--{self.name}"


OPTIONS: tuple[Option, ...] = (
    Option(
        "runs",
        str,
        "runs",
        "folder of all runs",
        "FOLDER",
        commands=("fit", "validate", "test", "predict"),
    ),
    Option(
        "name",
        str | None,
        None,
        "name of the run's folder; by default the recipe's name",
        commands=("fit", "validate", "test", "predict"),
    ),
    Option(
        "test_after_fit",
        bool,
        True,
        "measure the final weights on the test set once; false while you try settings",
        "BOOL",
    ),
    Option(
        "early_stop",
        str | None,
        None,
        "stop once this metric has not improved for PATIENCE validations (3 by default)",
        "METRIC[,PATIENCE]",
    ),
    Option("check_data", bool, False, "check the data, print a report and stop", "BOOL", True),
    Option(
        "save_every_n_steps",
        int,
        1000,
        "steps within an epoch between two saves of checkpoints/last.ckpt",
        "STEPS",
    ),
    Option(
        "resume_changes",
        Literal["refuse", "accept"],
        "refuse",
        "whether a run resumed by --ckpt_path may continue with other settings",
    ),
    Option(
        "wandb",
        Literal["off", "online", "offline"],
        "off",
        "log to Weights & Biases as well as to metrics.csv",
    ),
    Option("init_from", str | None, None, f"weights to start from: {WEIGHTS_NAMES}", "WEIGHTS"),
    Option(
        "freeze",
        str,
        "none",
        "backbone (everything except the classifier), the name of the last stage to freeze, or "
        "none",
        "PART",
    ),
    Option(
        "unfreeze_epoch",
        int | None,
        None,
        "the epoch, counted from 0, from which frozen parts are trained too",
        "EPOCH",
    ),
    Option(
        "layer_decay",
        float | None,
        None,
        "factor of the learning rate from each layer to the layer before it, for example 0.75",
        "FACTOR",
    ),
    Option(
        "lora_rank",
        int | None,
        None,
        "train LoRA matrices of this rank in each linear layer, and the classifier",
        "RANK",
    ),
    Option(
        "weights",
        str | None,
        None,
        f"weights to measure: {WEIGHTS_NAMES}",
        commands=("validate", "test", "predict"),
    ),
)
