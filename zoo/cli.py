"""``fit``, ``validate``, ``test`` and ``predict``: Lightning's command line, driven by recipes."""

from __future__ import annotations

import ctypes
import os
import re
import shlex
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

import yaml
from jsonargparse import ActionConfigFile
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from zoo import callbacks, checkpoints, recipes
from zoo.devices import lacks_bf16, several_cpus, several_gpus
from zoo.errors import UserError
from zoo.explain import explain
from zoo.summary import final_metrics, hardware, metric_lines, summary, versions
from zoo.tasks.base import Task, metric_prefix, read_checkpoint


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
                raise UserError(f"{path}: {explain(str(error), parser)}") from None
        parser.recipes.append(str(value))


class RecipeParser(LightningArgumentParser):
    """A parser whose errors are one line each, naming the nearest option."""

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
        parser = getattr(ex, "subcommand_parser", None) or self
        raise UserError(explain(message, parser, ZooCLI.typed))


SETTINGS: dict[str, Any] = {
    "model_class": LightningModule,
    "datamodule_class": LightningDataModule,
    "subclass_mode_model": True,
    "subclass_mode_data": True,
    "seed_everything_default": 0,
    "parser_class": RecipeParser,
    "auto_configure_optimizers": False,
    "load_from_checkpoint_support": False,  # tasks record JSON values themselves
}


# Commands whose metrics Lightning would put into a table, which cuts their names and has a column
# for each loader; they print a line a metric, as a fit does at its end.
TABLED = ("validate", "test")


class ZooCLI(LightningCLI):
    """LightningCLI with ``--recipe``, a folder a run, shipped weights, data that may stand in."""

    command: str = "fit"
    typed: Sequence[str] = ()

    def __init__(self, command: str, arguments: list[str]) -> None:
        # Only the parser of the command that was typed is built: each costs seconds.
        type(self).command = command
        type(self).typed = arguments
        super().__init__(
            **SETTINGS, save_config_kwargs={"overwrite": True}, args=[command, *arguments]
        )

    @classmethod
    def subcommands(cls) -> dict[str, set[str]]:
        given = LightningCLI.subcommands()[cls.command]  # what the user is not asked for
        return {cls.command: given | {"verbose"} if cls.command in TABLED else given}

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        parser = self.parser_class(**kwargs)
        parser.add_argument(
            "--recipe",
            "--config",
            action=RecipeAction,
            help="a recipe's name (python -m zoo list) or a YAML file; repeatable, the last wins",
        )
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        # Lightning warns of arguments that are not sys.argv's; tests and notebooks give their own.
        self.config = parser.parse_args(args)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--runs", type=str, default="runs", help="folder of all runs")
        parser.add_argument(
            "--name", type=str | None, default=None, help="the run's folder, else the recipe's name"
        )
        # fit's own options: the other commands take them too, so that they take fit's recipes.
        parser.add_argument(
            "--test_after_fit",
            type=bool,
            default=True,
            help="fit: measure the final weights on the test set once; false while you try things",
        )
        parser.add_argument(
            "--save_every_n_steps",
            type=int,
            default=1000,
            help="fit: steps within an epoch between two saves of checkpoints/last.ckpt",
        )
        parser.add_argument(
            "--wandb",
            type=Literal["off", "online", "offline"],
            default="off",
            help="fit: log to Weights & Biases as well as to metrics.csv",
        )

    def _parse_ckpt_path(self) -> None:
        """Nothing: a checkpoint's hyper-parameters never beat the recipe and the command line."""

    @property
    def shipped(self) -> str:
        """The shipped checkpoint that is meant where no file is given: the recipe's, or another."""
        wanted = self.options.ckpt_path
        if wanted in checkpoints.names():
            return wanted
        return recipes.weights_of(self.recipe_name) or self.recipe_name

    # -- what a run is called, and where it goes -------------------------------------------------

    @property
    def options(self) -> Any:
        return self.config[self.command]

    @property
    def recipe_name(self) -> str:
        given = self._parser(self.command).recipes  # type: ignore[attr-defined]
        path = Path(given[-1] if given else "custom")
        # A run's own config.yaml, runs/RECIPE/VERSION/config.yaml, is the recipe it came from.
        return path.parts[-3] if path.name == "config.yaml" and path.parts[2:] else path.stem

    @property
    def run_name(self) -> str:
        """The recipe's name; with stand-in data, theirs too."""
        name = str(self.options.name or self.recipe_name)
        described = self._describe_data()
        return f"{name}-on-{described['name'].lower()}" if "instead_of" in described else name

    def _describe_data(self) -> dict[str, Any]:
        describe = getattr(self.datamodule, "describe", None)
        return describe() if describe is not None else {}

    def _last_run(self) -> Path | None:
        """The newest run of this name that has a checkpoint."""
        found = Path(self.options.runs, self.run_name).glob("*/checkpoints/last.ckpt")
        newest = max(found, key=lambda path: path.stat().st_mtime, default=None)
        return newest.parent.parent if newest else None

    def _find_checkpoint(self) -> Path | None:
        """``--ckpt_path last|best|FILE`` as a file; None for shipped weights."""
        wanted = self.options.ckpt_path
        if wanted is None:
            return None
        if wanted in checkpoints.names():
            if self.command == "fit":
                raise UserError(
                    f"--ckpt_path {wanted}: shipped weights are no run to go on with; to start "
                    f"from them, zoo.load({wanted!r}) in Python"
                )
            return None
        if wanted not in ("last", "best"):
            if not Path(wanted).is_file():
                raise UserError(
                    f"--ckpt_path: no such file: {wanted} (or last, or best, of the newest run in "
                    f"{Path(self.options.runs, self.run_name)}, or a shipped checkpoint's name)"
                )
            return Path(wanted)
        run = self._last_run()
        file = run / "checkpoints" / f"{wanted}.ckpt" if run else None
        if file is None or not file.is_file():
            raise UserError(
                f"--ckpt_path {wanted}: no run with such a checkpoint in "
                f"{Path(self.options.runs, self.run_name)}"
            )
        return file

    # -- building --------------------------------------------------------------------------------

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except (ValueError, TypeError) as error:
            # A constructor refused its arguments: the user's input, unless it is a bug of ours,
            # which the environment variable ZOO_DEBUG shows whole.
            if _debug():
                raise
            raise UserError(explain(str(error), self.parser)) from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self.config_init[self.command]
        if self.datamodule is None:
            raise UserError("no data: give --recipe NAME, or --data CLASS")
        # Which data are really used decides what the run is called.
        self.datamodule.prepare_data()
        self.checkpoint = self._find_checkpoint()
        settings = config["trainer"]
        if settings.get("precision") == "bf16-mixed" and self._must_do_without_bf16(settings):
            # In config.yaml too, which says what ran.
            kwargs["precision"] = self.options["trainer"]["precision"] = "32-true"
        if settings.get("fast_dev_run"):
            return super().instantiate_trainer(**kwargs)

        logger = self._make_logger()
        folder = self.folder = Path(logger.log_dir)
        ours: list[Any] = []
        if self.command == "fit":
            ours = [
                callbacks.Curves(folder),
                callbacks.LastCheckpoint(folder / "checkpoints", config["save_every_n_steps"]),
                callbacks.Samples(folder),
            ]
            if settings.get("limit_val_batches") != 0 and self.model.monitor:
                ours.append(self._best_checkpoint(folder))
        elif self.command == "predict":
            classes = self._describe_data().get("classes", [])
            ours = [callbacks.Predictions(folder / "predictions.csv", classes)]
        given = _as_list(settings.get("callbacks"))
        own_bar = any(isinstance(callback, ProgressBar) for callback in given)
        if settings.get("enable_progress_bar") is None and not own_bar:
            if sys.stderr.isatty():
                ours.append(callbacks.RunBar())
            else:  # a log file
                kwargs["enable_progress_bar"] = False
                kwargs["enable_model_summary"] = False
                ours.append(callbacks.EpochLine())
        kwargs["logger"] = [logger, *self._more_loggers(folder)]
        kwargs["callbacks"] = [*given, *ours]
        kwargs["plugins"] = [*_as_list(settings.get("plugins")), callbacks.AtomicCheckpointIO()]
        if several_gpus(settings):
            kwargs["sync_batchnorm"] = True
        several = several_gpus(settings) or several_cpus(settings)
        alternates = getattr(self.model, "alternates", False)
        if several and alternates and settings.get("strategy", "auto") in ("auto", "ddp"):
            kwargs["strategy"] = "ddp_find_unused_parameters_true"
        return super().instantiate_trainer(**kwargs)

    def _must_do_without_bf16(self, trainer: Any) -> bool:
        """Whether a recipe's bf16-mixed gives way to float32; what was typed stands."""
        typed = any(argument.split("=")[0] == "--trainer.precision" for argument in self.typed)
        if typed or not lacks_bf16(trainer):
            return False
        rank_zero_warn(
            "trainer.precision is 32-true in place of bf16-mixed: this machine has no bfloat16 "
            "arithmetic, and imitating it would take several times as long "
            "(--trainer.precision bf16-mixed does so all the same)"
        )
        return True

    def _best_checkpoint(self, folder: Path) -> ModelCheckpoint:
        monitor = getattr(self.model, "monitor", Task.monitor)
        return ModelCheckpoint(
            folder / "checkpoints",
            filename="best",
            monitor=metric_prefix(self._describe_data()) + monitor,
            mode=getattr(self.model, "monitor_mode", Task.monitor_mode),
            auto_insert_metric_name=False,
            enable_version_counter=False,
        )

    def _make_logger(self) -> callbacks.RunLogger:
        name, root = self.run_name, self.options.runs
        if self.command == "fit" and self.checkpoint is not None:
            step = int(read_checkpoint(self.checkpoint).get("global_step", 0))
            run = self.checkpoint.resolve().parent.parent
            if run.parent == Path(root, name).resolve():  # goes on where it stopped
                return callbacks.RunLogger(root, name, run.name, resumed_step=step)
        return callbacks.RunLogger(root, name)

    def _more_loggers(self, folder: Path) -> list[Logger]:
        given = self.config_init[self.command]["trainer"].get("logger")
        loggers = [one for one in _as_list(given) if isinstance(one, Logger)]
        if self.command == "fit" and self.options.wandb != "off":
            from lightning.pytorch.loggers import WandbLogger

            rank_zero_only(folder.mkdir)(parents=True, exist_ok=True)
            loggers.append(
                WandbLogger(
                    project="zoo",
                    name=callbacks.run_name(folder),
                    save_dir=folder,
                    offline=self.options.wandb == "offline",
                )
            )
        return loggers

    # -- running ---------------------------------------------------------------------------------

    def _run_subcommand(self, subcommand: str) -> None:
        self.config_init[subcommand]["ckpt_path"] = self.checkpoint
        self.config_init[subcommand]["weights_only"] = True
        if self.checkpoint is not None:
            content = read_checkpoint(self.checkpoint)
            network = content.get("hyper_parameters", {}).get("network")
            checkpoints.check_same_network(network, self.model, self.checkpoint)
            known = content.get("data", {})
            checkpoints.check_same_classes(known, self._describe_data(), self.checkpoint)
        elif subcommand != "fit":
            self._load_shipped_weights()
        self.started = time.perf_counter()
        try:
            super()._run_subcommand(subcommand)
        except (UserError, MisconfigurationException):
            self._remove_unbegun_run()
            raise
        finally:
            if (
                self.options.wandb != "off"
            ):  # else a second run in this process would join the first
                import wandb

                wandb.finish()

    def _remove_unbegun_run(self) -> None:
        """What is refused as late as in the fit, an optimiser's argument say, leaves no folder."""
        folder = getattr(self, "folder", None)
        if folder is None or not self.trainer.is_global_zero or not folder.is_dir():
            return
        if [file.name for file in folder.iterdir()] != ["config.yaml"]:
            return
        (folder / "config.yaml").unlink()
        for empty in (folder, *folder.parents[:2]):  # runs/RECIPE/VERSION
            if any(empty.iterdir()):
                break
            empty.rmdir()

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs: dict[str, Any] = super()._prepare_subcommand_kwargs(subcommand)
        return kwargs | ({"verbose": False} if subcommand in TABLED else {})

    def _load_shipped_weights(self) -> None:
        name = self.shipped
        if name not in checkpoints.names():
            raise UserError(
                f"recipe {name!r} ships no weights: give --ckpt_path last, best or a file"
            )
        if "instead_of" in (described := self._describe_data()):
            raise UserError(
                f"the shipped weights of {name} are for {described['instead_of']}, which is "
                "neither on disk nor to be had: set ZOO_DATA to the folder that holds it"
            )
        checkpoints.load_weights(self.model, name)
        known = checkpoints.read_config(checkpoints.folder_of(name))["data"]
        checkpoints.check_same_classes(known, described, name)

    def after_fit(self) -> None:
        trainer = self.trainer
        if trainer.interrupted or not hasattr(self, "folder"):
            return
        seconds = time.perf_counter() - self.started
        tests = getattr(self.datamodule, "has_test", True) and getattr(self.model, "tests", True)
        if self.options.test_after_fit and tests:
            trainer.test(self.model, datamodule=self.datamodule, verbose=False)
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.save()
            described = self._describe_data()
            facts = {
                "parameters": sum(p.numel() for p in self.model.parameters()),
                "epochs": trainer.current_epoch,
                "steps": trainer.global_step,
                "wall_time_s": round(seconds, 1),
                "command": shlex.join(["python", "-m", "zoo", self.command, *self.typed]),
                "date": time.strftime("%Y-%m-%d"),
                "hardware": hardware(trainer),
                "versions": versions(),
                "seed": self.options.seed_everything,
                "resumed": self.checkpoint is not None,
                "devices": trainer.world_size,
                "precision": trainer.precision,
                "data": described,
                "metrics": final_metrics(self.folder / callbacks.METRICS_FILE),
            }
            checkpoints.write_json(self.folder / "run.json", facts)
            text = summary(self.folder, facts, type(self.model).__name__)
            checkpoints.write_text(self.folder / "summary.txt", text)
            print("\n" + text, flush=True)

    def after_validate(self) -> None:
        self._say_where()

    def after_test(self) -> None:
        self._say_where()

    def _say_where(self) -> None:
        if self.trainer.is_global_zero and hasattr(self, "folder"):
            weights = self.checkpoint or f"shipped {self.shipped}"
            measured = {k: float(v) for k, v in self.trainer.callback_metrics.items()}
            print("\n".join(metric_lines(measured)))
            print(f"weights: {weights}\nmetrics: {self.folder / callbacks.METRICS_FILE}")


class _Reader(ZooCLI):
    """Builds what a recipe describes, and runs nothing."""

    def __init__(self, arguments: list[str]) -> None:
        LightningCLI.__init__(
            self, **SETTINGS, save_config_callback=None, run=False, args=arguments
        )

    @property
    def options(self) -> Any:
        return self.config

    def _set_seed(self) -> None:
        """Nothing: nothing is trained."""

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        return None


def build(recipe: str, overrides: Sequence[str] = ()) -> tuple[LightningModule, Any]:
    """Task and data module of a recipe, with fresh weights.

    Args:
        recipe: its name or file.
        overrides: as on the command line, ``["--model.network.width", "8"]``.

    Raises:
        UserError: no such recipe, or a fault in it.
    """
    reader = _Reader(["--recipe", recipe, *overrides])
    return reader.model, reader.datamodule


def _as_list(value: Any) -> list[Any]:
    if value is None or isinstance(value, bool):
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def keep_freed_memory() -> None:
    """Tells glibc to keep what one step frees for the next, for the whole process.

    Otherwise every large tensor is given back to the kernel, and its pages are faulted in again at
    the next step: a twentieth of a training step on a CPU (tests/benchmarks/allocator.py). What
    the user set in glibc's own environment variables stands; other systems are left alone.
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another C library
        return
    trim_threshold, mmap_max, arena_max = -1, -4, -8  # as malloc.h names them
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(arena_max, 1)  # autograd's threads free what ours allocated


def _debug() -> bool:
    return bool(os.environ.get("ZOO_DEBUG"))


def main(arguments: list[str]) -> int:
    """``python -m zoo fit|validate|test|predict …``."""
    # Advice for other people's loaders: ours hold the data in memory and need no workers.
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*Couldn't infer the batch indices.*")
    warnings.filterwarnings("ignore", ".*smaller than the logging interval.*")
    warnings.filterwarnings("ignore", ".*LeafSpec.*is deprecated.*")
    warnings.filterwarnings("ignore", ".*Checkpoint directory .* exists and is not empty.*")
    keep_freed_memory()
    try:
        ZooCLI(arguments[0], arguments[1:])
    except MisconfigurationException as error:  # a setting of the trainer that cannot be
        if _debug():
            raise
        raise UserError(str(error)) from error
    return 0
