"""``--recipe``, and errors of one line."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn, get_args, get_type_hints

import yaml
from jsonargparse import ActionConfigFile, Namespace
from lightning.pytorch.cli import LightningArgumentParser

from zoo import recipes
from zoo.cli import pretrained
from zoo.cli.messages import in_one_line
from zoo.core.text import shown
from zoo.errors import UserError


class RecipeAction(ActionConfigFile):
    """``--recipe NAME|FILE``: applies the recipe's bases first, and checks after each file."""

    @staticmethod
    def apply_config(parser: Any, cfg: Any, dest: str, value: str) -> None:
        for path, content in recipes.chain(recipes.find(str(value))):
            if not content:
                continue
            try:
                ActionConfigFile.apply_config(parser, cfg, dest, yaml.safe_dump(content))
                parser.validate(cfg.clone(), skip_required=True)
            except UserError as error:
                raise UserError(f"{path}: {error}") from None
            except (TypeError, ValueError, KeyError) as error:
                raise UserError(f"{path}: {in_one_line(str(error), parser)}") from None
        parser.recipes.append(str(value))
        if str(value) not in parser.networks:  # a command line is parsed more than once
            network = pretrained.missing_network(parser.typed, cfg, str(value))
            parser.networks[str(value)] = network
        if network := parser.networks[str(value)]:
            addition = yaml.safe_dump({"model": {"init_args": {"network": network}}})
            ActionConfigFile.apply_config(parser, cfg, dest, addition)


class RecipeParser(LightningArgumentParser):
    """A parser whose errors are one line each, naming the nearest option.

    Attributes:
        recipes: the recipes that were given, in order.
        typed: the whole command line after the command.
        networks: by recipe, the network that it leaves to the weights; None where it has its own.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)
        self.recipes: list[str] = []
        self.typed: Sequence[str] = ()
        self.networks: dict[str, dict[str, Any] | None] = {}

    def add_class_arguments(self, *args: Any, **options: Any) -> Any:
        # A class is described in place. jsonargparse would read it from any file that a recipe
        # names, and quote the file where it is not a description.
        return super().add_class_arguments(*args, **{**options, "sub_configs": False})

    def add_subclass_arguments(self, *args: Any, **options: Any) -> Any:
        added = super().add_subclass_arguments(*args, **options)
        actions: list[Any] = self._actions
        for action in actions:
            if getattr(action, "_enable_path", False):  # for which there is no option here
                action._enable_path = False
                action.sub_add_kwargs = {**action.sub_add_kwargs, "sub_configs": False}
        return added

    def parse_args(self, args: Any = None, *others: Any, **options: Any) -> Any:
        # jsonargparse 4.53 hands an option of a nested class on as text, where null reads None.
        for argument in args or ():
            if isinstance(argument, str) and not argument.isascii():
                _check_utf8(argument)
        if args is not None:
            args = [re.sub(r"^(--[\w.]+=)None$", r"\1null", argument) for argument in args]
        parsed = super().parse_args(args, *others, **options)
        _refuse_nothing(parsed, "")
        return parsed

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        cause: BaseException | None = ex
        while cause is not None:
            if isinstance(cause, UserError):
                raise cause
            cause = cause.__cause__ or cause.__context__
        if not self.exit_on_error:  # of a class within another: whoever asked for it reports it
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        raise UserError(in_one_line(message, parser))


def _check_utf8(argument: str) -> None:
    try:
        argument.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"{shown(argument)} is not UTF-8: config.yaml could not hold it") from None


def _refuse_nothing(settings: Any, at: str) -> None:
    """Refuses null where a class of the zoo takes none, and numbers that are not numbers.

    jsonargparse takes null for every argument, and a range lets nan through.

    Raises:
        UserError: the argument is named.
    """
    if isinstance(settings, float) and settings != settings:
        raise UserError(f"{at} is nan: give a number")
    if isinstance(settings, list):
        for index, item in enumerate(settings):
            _refuse_nothing(item, f"{at}[{index}]")
    if not isinstance(settings, Namespace):
        return
    for key, value in vars(settings).items():
        _refuse_nothing(value, f"{at}.{key}" if at else key)
    path, args = settings.get("class_path"), settings.get("init_args")
    if not isinstance(path, str) or not path.startswith("zoo.") or args is None:
        return
    module, _, name = path.rpartition(".")
    made = getattr(import_module(module), name)
    hints = get_type_hints(made.__init__ if inspect.isclass(made) else made)
    for key, value in vars(args).items():
        taken = get_args(hints.get(key)) or (hints.get(key, Any),)
        if value is None and not {type(None), Any} & set(taken):
            raise UserError(f"{at}.{key} is null, and {name} needs a value for it")
