"""Builds the task and the data module of a recipe."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from zoo.cli.following import follow_data, make_data
from zoo.cli.messages import in_one_line
from zoo.cli.options import OPTIONS, RECIPE_HELP
from zoo.cli.parser import RecipeAction, RecipeParser
from zoo.data.module import DataModule
from zoo.errors import UserError


class RecipeReader(LightningCLI):
    """Builds the task and the data module that a recipe describes, and runs nothing.

    Args:
        arguments: as on the command line, ``--recipe NAME`` and what overrides it.
        options: of ``LightningCLI``, where something is to run.
    """

    def __init__(self, arguments: list[str], **options: Any) -> None:
        self.typed = arguments
        settings: dict[str, Any] = {
            "model_class": LightningModule,
            "datamodule_class": LightningDataModule,
            "subclass_mode_model": True,
            "subclass_mode_data": True,
            "seed_everything_default": 0,
            "parser_class": RecipeParser,
            "auto_configure_optimizers": False,
            "load_from_checkpoint_support": False,  # tasks record JSON values themselves
            "save_config_callback": None,
            "run": False,
            "args": arguments,
        }
        super().__init__(**{**settings, **options})

    @property
    def options(self) -> Any:
        """What was typed and what the recipe says, by name."""
        return self.config

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        parser = RecipeParser(**{"prog": "python -m zoo", **kwargs})
        parser.typed = self.typed
        parser.add_argument(
            "--recipe",
            "--config",
            action=RecipeAction,
            help=RECIPE_HELP,
        )
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        # Lightning warns of arguments that are not sys.argv's; tests and notebooks give their own.
        self.config = parser.parse_args(args)
        self._arguments = args

    def given(self) -> Any:
        """What was typed and what the recipe says, without the defaults of what they leave out."""
        return self.parser.parse_args(self._arguments, defaults=False)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        for option in OPTIONS:
            switch: dict[str, Any] = {"nargs": "?", "const": True} if option.is_switch else {}
            parser.add_argument(
                option.flag, type=option.type, default=option.default, help=option.help, **switch
            )

    def _parse_ckpt_path(self) -> None:
        """A checkpoint's hyper-parameters never beat the recipe and the command line."""

    def _set_seed(self) -> None:
        """Reading a recipe reseeds nothing: fresh weights draw from the caller's random state."""

    def instantiate_classes(self) -> None:
        with refused_in_one_line(self.parser):
            data = make_data(self.options, self.given)
            if data is not None:
                self.look_at(data)
                follow_data(self.options, self.given, data)
            self.config_init = self.parser.instantiate_classes(self.config)
            self.datamodule = data or self._get(self.config_init, "data")
            self.model = self._get(self.config_init, "model")

    def look_at(self, data: DataModule) -> None:
        """Is called with the data before the model's arguments are filled in from them."""

    def describe_data(self) -> dict[str, Any]:
        """Describes the data; nothing for a data module that is not one of the zoo's."""
        describe = getattr(self.datamodule, "describe", None)
        return describe() if describe is not None else {}


def from_recipe(recipe: str, overrides: Sequence[str] = ()) -> tuple[LightningModule, Any]:
    """Builds the task and the data module of a recipe, with fresh weights.

    Args:
        recipe: its name or file.
        overrides: as on the command line, ``["--model.network.width", "8"]``.

    Raises:
        UserError: no such recipe, or a fault in it.
    """
    reader = RecipeReader(["--recipe", recipe, *overrides])
    return reader.model, reader.datamodule


@contextmanager
def refused_in_one_line(parser: LightningArgumentParser) -> Iterator[None]:
    """Turns a constructor's refusal of its arguments into an error of one line.

    Unless it is a bug of ours, which the environment variable ZOO_DEBUG shows whole.
    """
    try:
        yield
    except (ValueError, TypeError) as error:
        if debugging():
            raise
        raise UserError(in_one_line(str(error), parser)) from error


def debugging() -> bool:
    """Returns whether the environment asks for tracebacks (ZOO_DEBUG)."""
    return bool(os.environ.get("ZOO_DEBUG"))
