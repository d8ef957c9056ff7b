"""``--recipe``, and errors of one line."""

from __future__ import annotations

import re
from typing import Any, NoReturn

import yaml
from jsonargparse import ActionConfigFile
from lightning.pytorch.cli import LightningArgumentParser

from zoo import recipes
from zoo.cli.messages import in_one_line
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


class RecipeParser(LightningArgumentParser):
    """A parser whose errors are one line each, naming the nearest option.

    Attributes:
        recipes: the recipes that were given, in order.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)
        self.recipes: list[str] = []

    def parse_args(self, args: Any = None, *others: Any, **options: Any) -> Any:
        # jsonargparse 4.53 hands an option of a nested class on as text, where null reads None.
        if args is not None:
            args = [re.sub(r"^(--[\w.]+=)None$", r"\1null", argument) for argument in args]
        return super().parse_args(args, *others, **options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        cause: BaseException | None = ex
        while cause is not None:
            if isinstance(cause, UserError):
                raise cause
            cause = cause.__cause__ or cause.__context__
        if not self.exit_on_error:  # of a class within another: whoever asked for it tells
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        raise UserError(in_one_line(message, parser))
