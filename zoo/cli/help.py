"""``python -m zoo fit --help``: our options and the recipe's keys first, without torch."""

from __future__ import annotations

import argparse
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard, get_args

from zoo import recipes, registry
from zoo.cli.options import OPTIONS, RECIPE_HELP, Option
from zoo.core.signatures import Argument, arguments_of, exported
from zoo.core.text import nearest
from zoo.errors import UserError

TRAINER = "lightning.pytorch.Trainer"
REQUIRED = "(required)"
OUTPUTS = {"num_classes", "vocab_size"}  # an argument of every network
# jsonargparse's own would list every subclass of nn.Module that was ever imported.
CLASS_HELP = {
    "--model.help": "zoo.tasks",
    "--model.network.help": "zoo.networks",
    "--data.help": "zoo.data",
}
ABOUT = {
    "fit": "Train the network of a recipe and measure it on the test set once. The run's folder "
    "holds settings, metrics, curves and checkpoints.",
    "validate": "Measure weights on the validation data of a recipe.",
    "test": "Measure weights on the test data of a recipe.",
    "predict": "Predict the classes of the test images of a recipe.",
}
CKPT_PATH = {
    "fit": "resume a run: last or best of the newest run of this recipe, or a .ckpt file",
    "validate": "last or best of the newest run of this recipe, a shipped name, or a .ckpt file",
}
# What a type is made of that the command line can take.
PLAIN = {"int", "float", "str", "bool", "list", "dict", "Any", "Literal", "None"}


@dataclass(frozen=True)
class _Key:
    """A key that a recipe may hold, as the command line writes it."""

    flag: str
    value: str
    help: str


def help_of(command: str, typed: list[str]) -> str:
    """Writes the help of a command.

    Args:
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        typed: the command line after it; the values are those of its recipes.

    Raises:
        UserError: there is no such recipe, or a fault in it.
    """
    named = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    named.add_argument("--recipe", "--config", action="append", nargs="?", default=[])
    given = [name for name in named.parse_known_args(typed)[0].recipe if name is not None]
    recipe: dict[str, Any] = {}
    for name in given:
        recipe = recipes.merge(recipe, recipes.resolve(name))

    parser = argparse.ArgumentParser(
        prog=f"python -m zoo {command}",
        usage=f"python -m zoo {command} --recipe NAME [--KEY VALUE ...]",
        description=ABOUT[command],
        epilog=_epilog(command, given),
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=32),
    )
    _add_options(parser, command, recipe)
    title = f"keys of {' and '.join(given)}, with their values" if given else "keys of a recipe"
    own = list(_recipe_keys(recipe) if given else _general_keys())
    _add_keys(parser, title, own)
    seen = {key.flag for key in own}
    for title, keys in _further_keys(recipe):
        _add_keys(parser, title, [key for key in keys if key.flag not in seen])
    return parser.format_help()


def class_help(command: str, typed: Sequence[str]) -> str | None:
    """Writes the help of ``--model.help CLASS`` and its like, where one is typed.

    Args:
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        typed: the command line after it.

    Raises:
        UserError: there is no such class.
    """
    for number, word in enumerate(typed):
        option, _, name = word.partition("=")
        if (package := CLASS_HELP.get(option)) is None:
            continue
        flag, name = option.removesuffix(".help"), name or "".join(typed[number + 1 : number + 2])
        known = _names_in(package)
        if name in ("", *known):
            path = f"{package}.{name}"
        elif arguments_of(name):
            path = name
        elif name in exported(package):
            return None  # its source does not show its arguments; jsonargparse imports it
        else:
            raise UserError(
                f"{option}: no class named {name!r} in {package}{nearest(name, known)} (there are "
                f"{', '.join(known)})"
            )
        if not name:
            return f"{flag} takes one of {package}: {', '.join(known)}\n"
        parser = argparse.ArgumentParser(
            usage=f"python -m zoo {command} {flag} {path} [{flag}.KEY VALUE ...]",
            formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=32),
            add_help=False,
        )
        _add_keys(parser, f"arguments of {path}, with their defaults", _arguments(flag, path))
        return parser.format_help()
    return None


def _names_in(package: str) -> list[str]:
    """The classes that ``--model``, ``--model.network`` or ``--data`` may name without a path."""
    if package == "zoo.networks":  # what has an output; the package exports tools as well
        return [
            name
            for name in exported(package)
            if OUTPUTS & {argument.name for argument in arguments_of(f"{package}.{name}")}
        ]
    return list(registry.TASKS if package == "zoo.tasks" else registry.DATA)


def _epilog(command: str, given: list[str]) -> str:
    if given:
        return (
            "--model.help CLASS, --model.network.help CLASS and --data.help CLASS describe other "
            "tasks, networks and data sets."
        )
    return (
        f"python -m zoo {command} --recipe NAME --help shows the keys of that recipe with their "
        "values. --model.help CLASS, --model.network.help CLASS and --data.help CLASS describe a "
        "task, a network and a data set."
    )


def _add_options(parser: argparse.ArgumentParser, command: str, recipe: dict[str, Any]) -> None:
    add = parser.add_argument
    add("--recipe", "--config", metavar="NAME|FILE", help=RECIPE_HELP)
    for option in OPTIONS:
        if command in option.commands:
            _add_option(parser, option, recipe)
    about = CKPT_PATH["fit" if command == "fit" else "validate"]
    add("--ckpt_path", metavar="FILE", help=about)
    seed = _shown(recipe.get("seed_everything", 0))
    add("--seed_everything", metavar="SEED", help=f"seed of every random number [{seed}]")
    add("--print_config", action="store_true", help="print all settings as a recipe and stop")


def _add_option(parser: argparse.ArgumentParser, option: Option, recipe: dict[str, Any]) -> None:
    value = recipe.get(option.name, option.default)
    choices = [one for one in get_args(option.type) if isinstance(one, str)]
    parser.add_argument(
        option.flag,
        metavar=option.metavar or (f"{{{','.join(choices)}}}" if choices else None),
        nargs="?" if option.is_switch else None,
        help=_escaped(option.help + (f" [{_shown(value)}]" if value is not None else "")),
    )


def _add_keys(parser: argparse.ArgumentParser, title: str, keys: list[_Key]) -> None:
    group = parser.add_argument_group(title)
    for key in keys:
        group.add_argument(key.flag, metavar=key.value, help=_escaped(key.help))


def _general_keys() -> Iterator[_Key]:
    """What every recipe has, where none is given."""
    yield _Key("--model", "CLASS", f"the task: {', '.join(registry.TASKS)}")
    yield _Key("--model.KEY", "VALUE", "an argument of the task, for example --model.lr 0.01")
    yield _Key("--model.network", "CLASS", "the network, for example zoo.networks.ResNet")
    yield _Key("--model.network.KEY", "VALUE", "an argument of the network")
    yield _Key("--data", "CLASS", f"the data: {', '.join(registry.DATA)}")
    yield _Key("--data.KEY", "VALUE", "an argument of the data, for example --data.batch_size 64")


def _recipe_keys(recipe: Mapping[str, Any]) -> Iterator[_Key]:
    for section in ("model", "data"):
        yield from _keys_of(f"--{section}", recipe.get(section))
    about = {argument.name: argument for argument in arguments_of(TRAINER)}
    for name, value in (recipe.get("trainer") or {}).items():
        yield _Key(f"--trainer.{name}", _shown(value), _described(about.get(name)))


def _keys_of(flag: str, part: Any) -> Iterator[_Key]:
    """A class of a recipe and the arguments that it is given, classes within it included."""
    if not _is_class(part):
        return
    path = part["class_path"]
    yield _Key(flag, path, "")
    about = {argument.name: argument for argument in arguments_of(path)}
    within = []
    for name, value in (part.get("init_args") or {}).items():
        if _is_class(value):
            within.append((f"{flag}.{name}", value))
        else:
            yield _Key(f"{flag}.{name}", _shown(value), _described(about.get(name)))
    for inner, value in within:
        yield from _keys_of(inner, value)


def _is_class(part: Any) -> TypeGuard[dict[str, Any]]:
    return isinstance(part, dict) and isinstance(part.get("class_path"), str)


def _further_keys(recipe: Mapping[str, Any]) -> Iterator[tuple[str, list[_Key]]]:
    """Arguments that the recipe leaves at their defaults, class by class."""
    model, data = recipe.get("model"), recipe.get("data")
    network = (model.get("init_args") or {}).get("network") if _is_class(model) else None
    for flag, part in (("--model", model), ("--model.network", network), ("--data", data)):
        if _is_class(part):
            path = part["class_path"]
            title = f"further arguments of {path.rpartition('.')[2]}, with their defaults"
            yield title, _defaults(flag, path)
    yield (
        "further arguments of Lightning's Trainer, with their defaults",
        _defaults("--trainer", TRAINER),
    )


def _defaults(flag: str, path: str) -> list[_Key]:
    return [key for key in _arguments(flag, path) if key.value != REQUIRED]


def _arguments(flag: str, path: str) -> list[_Key]:
    return [
        _Key(
            f"{flag}.{argument.name}",
            REQUIRED if argument.default is None else _as_typed(argument.default),
            f"{_described(argument)} {_typed(argument)}".strip(),
        )
        for argument in arguments_of(path)
    ]


def _described(argument: Argument | None) -> str:
    if argument is None:
        return ""
    text = re.sub(r":\w+:`(.+?)`", r"\1", argument.description)
    # Lightning explains an argument at length.
    return re.split(r"(?<!al)\. (?=[A-Z])|(?<=\.)$|:?\s*Default: ", text)[0].rstrip(".")


def _typed(argument: Argument) -> str:
    """The type in words of the command line; nothing where it names a class or an alias."""
    text = re.sub(r"^Optional\[(.+)\]$", r"\1 | None", argument.annotation)
    if union := re.fullmatch(r"Union\[(.+)\]( \| None)?", text):
        text = union[1].replace(", ", " | ") + (union[2] or "")
    plain = set(re.findall(r"(?<!')\b[A-Za-z_]\w*\b(?!')", text)) <= PLAIN
    return f"({text.replace('None', 'null')})" if text and plain else ""


def _as_typed(default: str) -> str:
    """A default of Python's, as the command line writes it."""
    words = {"None": "null", "True": "true", "False": "false"}
    return words.get(default, default.strip("'"))


def _shown(value: Any) -> str:
    """A value of a recipe, as the command line writes it."""
    return shlex.quote(value if isinstance(value, str) else json.dumps(value))


def _escaped(text: str) -> str:
    return text.replace("%", "%%")
