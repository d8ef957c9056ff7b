"""``python -m zoo audit``: checks normalization and dropout of any model."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from zoo.commands import add_weights_options, chosen_weights
from zoo.core.options import Parser
from zoo.core.text import counted, nearest
from zoo.errors import UserError

BATCHES = 4  # that a picture is measured on


@dataclass(frozen=True)
class Audited:
    """What was audited, and on which data a picture of it is measured."""

    title: str
    model: Any
    example: tuple[Any, ...]
    report: Any
    batches: Callable[[], list[Any]]
    data: str  # what the batches are
    learn: bool  # whether the model's running statistics are of no data, or of others


def main(arguments: list[str]) -> int:
    parser = Parser(
        "audit",
        "Follow the data through one forward and check where normalization and dropout stand. "
        "Exit code 1 if something as severe as --fail-on is found, 2 if part of the model "
        "cannot be audited (scripted, traced or exported code).",
    )
    add_weights_options(
        parser, "a recipe: its network before training, its optimizer and batch size"
    )
    parser.add_argument(
        "--model",
        help="timm:NAME, torchvision:NAME, my_package.my_file:build or path/file.py:build",
    )
    parser.add_argument("--args", default="{}", help="the model's arguments, a JSON object")
    parser.add_argument(
        "--input",
        action="append",
        metavar="SHAPE",
        help="such as 2,3,224,224, or 2,64:int for tokens; repeatable",
    )
    parser.add_argument("--batch-size", type=int, help="batch size of training, per process")
    parser.add_argument("--fail-on", choices=["info", "warning", "error", "never"], default="error")
    parser.add_argument("--json", action="store_true", help="print all findings as one JSON object")
    parser.add_argument(
        "--sarif", type=Path, metavar="FILE", help="also write a SARIF file, for code review"
    )
    parser.add_argument(
        "--picture",
        type=Path,
        metavar="FILE",
        help="also draw the layers in order, the BatchNorm at fault, and its running variance over "
        "the variance in evaluation, before and after recalibration (PNG)",
    )
    parser.add_argument(
        "--explain",
        nargs="?",
        const="",
        metavar="RULE",
        help="explain a rule, with an example; without a name, list all rules",
    )
    options = parser.parse_args(arguments)
    if options.explain is not None:
        print(_explain(options.explain))
        return 0
    audited = _audit(options)
    report = audited.report
    if options.picture:
        _draw(audited, options.picture)
    if options.sarif:
        from zoo.core.files import write_text

        write_text(options.sarif, report.to_sarif() + "\n")
    if options.json:
        print(report.to_json())
    else:
        _print(report)
        if options.picture:
            print(f"picture: {options.picture}")
    if not report.audited:
        return 2
    return int(options.fail_on != "never" and bool(report.at_least(options.fail_on)))


def _explain(rule: str) -> str:
    from zoo.diagnostics.audit import explain_rule
    from zoo.diagnostics.rules import RULES

    if rule:
        return explain_rule(rule)
    width = max(map(len, RULES))
    return "\n".join(
        f"{rule.id:<{width}}  {rule.severity:<7}  {rule.sentence}" for rule in RULES.values()
    )


def _print(report: Any) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(soft_wrap=True, highlight=False)
    for line, style in report.lines():
        console.print(Text(line, style=style))


def _draw(audited: Audited, picture: Path) -> None:
    from zoo.diagnostics.picture import draw_audit, measure_repair

    if not any("BatchNorm" in kind for kind in audited.report.seen):
        raise UserError(f"--picture: {audited.title} has no BatchNorm, so there is nothing to draw")
    batches = audited.batches()
    repair = measure_repair(audited.model, batches, learn=audited.learn)
    source = (
        "running variances gathered on the same in training mode, dropout on, initial weights"
        if audited.learn
        else "running variances as the weights hold them"
    )
    draw_audit(
        audited.model,
        audited.example,
        [finding.module for finding in audited.report.at_least("warning")],
        repair,
        picture,
        title=audited.title,
        measured=f"Median over channels on {counted(len(batches), 'batch', 'batches')} of "
        f"{audited.data}; {source}.",
    )


def _audit(options: argparse.Namespace) -> Audited:
    import torch

    from zoo.diagnostics.audit import audit

    task: Any
    data: Any
    given = options.recipe or options.weights or options.ckpt_path
    if options.model and given:
        raise UserError(f"--model {options.model} and {given}: give one of them")
    if options.weights or options.ckpt_path:
        from zoo.checkpoints.load import load
        from zoo.checkpoints.recorded import data_of, name_of

        source = chosen_weights(options, "audit")
        task = load(source)
        inputs = _inputs(options.input) or _stored_example(task)
        report = audit(task.network, *inputs, batch_size=options.batch_size)
        return Audited(
            name_of(source),
            task.network,
            inputs,
            report,
            lambda: _training_batches(task, data_of(source)),
            "its training images",
            learn=False,
        )
    if options.recipe:
        from zoo.cli.building import from_recipe

        task, data = from_recipe(options.recipe)
        inputs = _inputs(options.input) or _example(task, data)
        optimizer = task.make_optimizer() if hasattr(task, "make_optimizer") else None
        network = getattr(task, "network", task)
        report = audit(
            network,
            *inputs,
            batch_size=options.batch_size or getattr(data, "batch_size", None),
            optimizer=optimizer,
        )
        return Audited(
            Path(options.recipe).stem,
            network,
            inputs,
            report,
            lambda: _training_batches(task, data),
            "its training images",
            learn=True,
        )
    if not options.model:
        raise UserError("audit needs a model: give --recipe NAME, or --model timm:resnet50")
    torch.manual_seed(0)
    arguments = _json(options.args)
    model, size = _model(options.model, arguments)
    make: Callable[..., tuple[Any, ...]] = partial(_inputs, options.input)
    if not options.input:
        if size is None:
            raise UserError(
                f"--input: the input of {options.model} is not known: give its shape, 2,3,224,224"
            )
        make = partial(_inputs, [",".join(map(str, (2, *size)))])
    inputs = make()
    written = ", ".join(f"{name}={value}" for name, value in arguments.items())
    return Audited(
        options.model + (f" ({written})" if written else ""),
        model,
        inputs,
        audit(model, *inputs, batch_size=options.batch_size),
        lambda: [make(seed) for seed in range(BATCHES)],
        f"random inputs {' and '.join('×'.join(map(str, one.shape)) for one in inputs)}",
        learn=True,
    )


def _training_batches(task: Any, data: Any) -> list[Any]:
    """Training images without augmentation, normalized, and their labels."""
    from zoo.tasks.protocols import SamplesImages

    if isinstance(task, SamplesImages) or not hasattr(data, "plain"):
        raise UserError("--picture: the network's inputs are not images: give --model and --input")
    data.prepare_data()
    batches = islice(data.plain("train", 64), BATCHES)
    return [(data.normalize(images), labels) for images, labels in batches]


def _example(task: Any, data: Any) -> tuple[Any, ...]:
    if not hasattr(data, "example_input"):
        raise UserError("--input: the shape of the recipe's data is not known: give a shape")
    if hasattr(task, "example_inputs"):
        return tuple(task.example_inputs(data))
    return (data.example_input(),)


def _stored_example(task: Any) -> tuple[Any, ...]:
    """An input of the form that the weights' checkpoint records."""
    import torch

    if (shape := task.data_info.get("input_shape")) is not None:
        return (torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)),)
    raise UserError("--input: the input of the weights' network is not known: give a shape")


def _json(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise UserError(f"--args: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"--args: expected a JSON object, as in '{{\"drop_rate\": 0.2}}': {text}")
    return value


def _inputs(shapes: list[str] | None, seed: int = 0) -> tuple[Any, ...]:
    import torch

    inputs = []
    generator = torch.Generator().manual_seed(seed)
    for text in shapes or []:
        sizes, _, kind = text.partition(":")
        try:
            shape = [int(size) for size in sizes.split(",")]
            if min(shape) < 1 or kind not in ("", "int"):
                raise ValueError
        except ValueError:
            raise UserError(
                f"--input {text}: expected sizes such as 2,3,224,224, or 2,64:int for tokens"
            ) from None
        inputs.append(
            torch.zeros(shape, dtype=torch.long)
            if kind == "int"
            else torch.randn(shape, generator=generator)
        )
    return tuple(inputs)


def _model(spec: str, args: dict[str, Any]) -> tuple[Any, tuple[int, ...] | None]:
    """The model, and the size (C, H, W) of its images where that is known."""
    origin, colon, name = spec.rpartition(":")
    if not colon or not name:
        raise UserError(f"--model {spec}: expected timm:NAME, torchvision:NAME or module:function")
    try:
        if origin == "timm":
            return _timm(name, args)
        if origin == "torchvision":
            return _torchvision(name, args)
        return _own(spec, origin, name, args), None
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"--model {spec}: {error}") from error


def _timm(name: str, args: dict[str, Any]) -> tuple[Any, tuple[int, ...] | None]:
    import timm

    if not timm.is_model(name):
        raise UserError(f"timm has no model named {name!r}{nearest(name, timm.list_models())}")
    model = timm.create_model(name, **{"pretrained": False, **args})
    size = (getattr(model, "pretrained_cfg", None) or {}).get("input_size")
    return model, tuple(size) if size else None


def _torchvision(name: str, args: dict[str, Any]) -> tuple[Any, tuple[int, ...] | None]:
    from torchvision import models

    if name not in models.list_models():
        raise UserError(
            f"torchvision has no model named {name!r}{nearest(name, models.list_models())}"
        )
    builder = models.get_model_builder(name)
    # Nothing is downloaded unless it is asked for.
    offline = {k: None for k in ("weights", "weights_backbone") if _takes(builder, k)}
    side = 299 if name == "inception_v3" else 224
    frames = (3, 16, 112, 112) if "video" in builder.__module__ else (3, side, side)
    return builder(**{**offline, **args}), frames


def _takes(function: Any, name: str) -> bool:
    return name in inspect.signature(function).parameters


def _own(spec: str, origin: str, name: str, args: dict[str, Any]) -> Any:
    from torch import nn

    try:
        if origin.endswith(".py"):
            path = Path(origin)
            if not path.is_file():
                raise UserError(f"--model {spec}: no such file: {origin}")
            found = importlib.util.spec_from_file_location(path.stem, path)
            assert found is not None
            assert found.loader is not None
            module = importlib.util.module_from_spec(found)
            sys.path.insert(0, str(path.resolve().parent))
            sys.modules[module.__name__] = module  # as dataclasses and pickle expect
            found.loader.exec_module(module)
        else:
            sys.path.insert(0, str(Path.cwd()))
            module = importlib.import_module(origin)
    except ModuleNotFoundError as error:
        raise UserError(f"--model {spec}: {error}") from None
    finally:
        if sys.path[0] in (str(Path.cwd()), str(Path(origin).resolve().parent)):
            sys.path.pop(0)
    if not hasattr(module, name):
        public = [key for key in vars(module) if not key.startswith("_")]
        raise UserError(f"--model {spec}: {origin} has no {name!r}{nearest(name, public)}")
    made = getattr(module, name)
    model = made if isinstance(made, nn.Module) else made(**args)
    if not isinstance(model, nn.Module):
        raise UserError(f"--model {spec}: it gives {type(model).__name__}, not an nn.Module")
    return model
