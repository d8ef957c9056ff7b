"""``fit``, ``validate``, ``test`` and ``predict``: Lightning's command line, driven by recipes."""

from __future__ import annotations

import shlex
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.cli import LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException

from zoo import recipes
from zoo.checkpoints import store
from zoo.checkpoints.load import (
    check_same_classes,
    check_same_network,
    initialize,
    load_weights,
)
from zoo.cli import pretrained, run_folder, trainer
from zoo.cli.building import RecipeReader, debugging, refused_in_one_line
from zoo.core.files import write_text
from zoo.core.memory import keep_freed_memory
from zoo.data import ImageFolder
from zoo.data.module import DataModule
from zoo.errors import UserError
from zoo.networks.lora import add_lora
from zoo.runs.callbacks import AtomicCheckpointIO, GivenSettings, Predictions
from zoo.runs.class_pictures import ClassPictures
from zoo.runs.early_stop import early_stop
from zoo.runs.metrics import METRICS_FILE, RunLogger
from zoo.runs.record import RunRecord
from zoo.runs.summary import final_metrics, metric_lines, summary, versions
from zoo.tasks.base import Task, read_checkpoint
from zoo.tasks.finetuning import NOTHING, prepare
from zoo.tasks.image_classifier import ImageClassifier
from zoo.tasks.protocols import SamplesImages, StreamsText

# Commands whose metrics Lightning would put into a table, which cuts their names and has a column
# for each loader; they print a line a metric, as a fit does at its end.
TABLED = ("validate", "test")


class _Checked(Exception):
    """The data are in order, and nothing more was asked for."""


class ZooCLI(RecipeReader):
    """Runs what a recipe describes: a folder a run, shipped weights, data that may stand in.

    Args:
        command: ``fit``, ``validate``, ``test`` or ``predict``.
        arguments: what was typed after it.
    """

    def __init__(self, command: str, arguments: list[str]) -> None:
        self.command = command
        super().__init__(
            arguments,
            run=True,
            args=[command, *arguments],
            save_config_callback=SaveConfigCallback,
            save_config_kwargs={"overwrite": True},
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        # Only the parser of the command that was typed is built: each costs seconds.
        given = LightningCLI.subcommands()[self.command]  # what the user is not asked for
        return {self.command: given | {"verbose"} if self.command in TABLED else given}

    def _set_seed(self) -> None:
        seed = self.options.seed_everything
        if not 0 <= int(seed) < 2**32:
            raise UserError(f"seed_everything is {seed}: give a number from 0 to {2**32 - 1}")
        LightningCLI._set_seed(self)

    @property
    def options(self) -> Any:
        return self.config[self.command]

    # -- what a run is called, and where it goes -------------------------------------------------

    @property
    def recipe_name(self) -> str:
        return run_folder.recipe_name(self._parser(self.command).recipes)  # type: ignore[attr-defined]

    @property
    def runs(self) -> Path:
        """The folder of all runs of this name."""
        name = str(self.options.name or self.recipe_name)
        return Path(self.options.runs, run_folder.run_name(name, self.describe_data()))

    @property
    def shipped(self) -> str:
        """The shipped checkpoint that is meant where no file is given: the recipe's, or another."""
        wanted = self.options.ckpt_path
        if wanted in store.names():
            return str(wanted)
        return recipes.weights_of(self.recipe_name) or self.recipe_name

    # -- building --------------------------------------------------------------------------------

    def given(self) -> Any:
        return super().given()[self.command]

    def look_at(self, data: DataModule) -> None:
        checking = self.options.check_data
        if self.command == "fit" and (checking or isinstance(data, ImageFolder)):
            if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
                print(data.report(), flush=True)
            if checking:
                data.prepare_data()
                raise _Checked

    def instantiate_classes(self) -> None:
        self._check_weights()
        super().instantiate_classes()
        if self.command == "fit" and self.options.check_data:  # and it was not looked at
            kind = type(self.datamodule).__name__
            raise UserError(f"--check_data: {kind} is not one of the zoo's data modules")
        with refused_in_one_line(self.parser):
            self.trainer = self.instantiate_trainer()

    def _check_weights(self) -> None:
        options = self.options
        if self.command == "fit" and options.weights is not None:
            raise UserError(f"--weights: to start a fit from them, --init_from {options.weights}")
        if options.weights is not None and options.ckpt_path is not None:
            raise UserError("--weights and --ckpt_path both name weights: give one of them")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self.config_init[self.command]
        if self.datamodule is None:
            raise UserError("no data: give --recipe NAME, or --data CLASS")
        # Which data are really used decides what the run is called.
        self.datamodule.prepare_data()
        runs = self.runs
        self.checkpoint = run_folder.find_checkpoint(self.options.ckpt_path, runs, self.command)
        settings = config["trainer"]
        trainer.check_settings(settings)
        trainer.use_tensor_cores()
        ours: list[Callback] = []
        if self.command == "fit":
            if self.options.init_from is not None and self.checkpoint is None:
                self._initialize()
            ours = self._fine_tuning()
        if trainer.must_do_without_bf16(settings, self.typed):
            # In config.yaml too, which says what ran.
            kwargs["precision"] = self.options["trainer"]["precision"] = "32-true"
        if settings.get("fast_dev_run"):
            kwargs["callbacks"] = [*trainer.as_list(settings.get("callbacks")), *ours]
            return super().instantiate_trainer(**kwargs)

        fitting = self.command == "fit"
        changed = self._changes(runs) if fitting and self.checkpoint is not None else {}
        logger = run_folder.make_logger(runs, self.checkpoint if fitting else None)
        folder = self.folder = Path(logger.log_dir)
        try:
            kwargs |= self._trainer_arguments(config, folder, logger, changed, ours)
            return super().instantiate_trainer(**kwargs)
        except Exception:
            run_folder.remove_unbegun_run(folder)
            raise

    def _changes(self, runs: Path) -> dict[str, Any]:
        """What a run that goes on in its folder does otherwise than before; refused or accepted."""
        assert self.checkpoint is not None
        if not run_folder.goes_on_in_place(runs, self.checkpoint):
            return {}
        run = self.checkpoint.parent.parent
        now = yaml.safe_load(self.parser.dump(self.config, skip_none=False))[self.command]
        changed = run_folder.changes(run, now)
        run_folder.check_changes(changed, run, self.options.resume_changes == "accept")
        return changed

    def _initialize(self) -> None:
        """Starts from ``--init_from``, and shows what was loaded of it."""
        report = initialize(self._task(), self.options.init_from, self.describe_data())
        if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            print(report, flush=True)

    def _fine_tuning(self) -> list[Callback]:
        given = self.options
        settings = (given.freeze, given.unfreeze_epoch, given.layer_decay, given.lora_rank)
        if settings == (NOTHING, None, None, None):
            return []
        return prepare(self._task(), *settings)

    def _task(self) -> Task:
        if not isinstance(self.model, Task):
            raise UserError(
                f"--init_from, --freeze and their like are for the zoo's tasks, and "
                f"{type(self.model).__name__} is none"
            )
        return self.model

    def _trainer_arguments(
        self,
        config: Any,
        folder: Path,
        logger: RunLogger,
        changed: dict[str, Any],
        ours: list[Any],
    ) -> dict[str, Any]:
        """The zoo's own callbacks, loggers and placement, beside the recipe's."""
        settings, fitting = config["trainer"], self.command == "fit"
        if fitting:
            ours += trainer.fit_callbacks(
                folder, self.model, settings, self.describe_data(), config["save_every_n_steps"]
            )
            self.record = RunRecord(folder, self._facts(changed))
            ours.append(self.record)
            if changed:
                ours.append(GivenSettings())
            if self.options.early_stop is not None:
                stop = early_stop(self.options.early_stop, self.model, self.describe_data())
                ours.append(stop)
        elif self.command == "predict":
            if isinstance(self.model, SamplesImages | StreamsText):
                raise UserError(
                    f"predict writes class probabilities, and {type(self.model).__name__} has "
                    "none: python -m zoo sample shows what it generates"
                )
            classes = self.describe_data().get("classes", [])
            ours = [Predictions(folder / "predictions.csv", classes)]
        if self.command != "predict" and isinstance(self.model, ImageClassifier):
            ours.append(ClassPictures(folder))
        bars, arguments = trainer.progress(settings)
        wandb = self.options.wandb if fitting else "off"
        return {
            **arguments,
            **trainer.placement(settings, self.model, self.options.unfreeze_epoch is not None),
            "logger": [logger, *trainer.more_loggers(settings, folder, wandb)],
            "callbacks": [*trainer.as_list(settings.get("callbacks")), *ours, *bars],
            "plugins": [*trainer.as_list(settings.get("plugins")), AtomicCheckpointIO()],
        }

    # -- running ---------------------------------------------------------------------------------

    def _run_subcommand(self, subcommand: str) -> None:
        self.config_init[subcommand]["ckpt_path"] = self.checkpoint
        self.config_init[subcommand]["weights_only"] = True
        try:
            self._load_weights(subcommand)
            super()._run_subcommand(subcommand)
        except (UserError, MisconfigurationException):
            if hasattr(self, "folder") and self.trainer.is_global_zero:
                run_folder.remove_unbegun_run(self.folder)
            raise
        except SystemExit as stop:  # Lightning's answer to Ctrl-C and to SIGTERM
            if hasattr(self, "record") and self.trainer.is_global_zero:
                print(f"stopped: {run_folder.how_to_go_on(self.folder, self.typed)}", flush=True)
            raise SystemExit(143 if isinstance(stop, SIGTERMException) else 130) from None
        finally:
            # Else a second run in this process would join the first.
            if self.options.wandb != "off":
                import wandb

                wandb.finish()

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs: dict[str, Any] = super()._prepare_subcommand_kwargs(subcommand)
        return kwargs | ({"verbose": False} if subcommand in TABLED else {})

    def _load_weights(self, subcommand: str) -> None:
        """Checks what a fit goes on from; loads what the other commands measure.

        Raises:
            UserError: there are no such weights, or they are of another network or other classes.
        """
        if self.checkpoint is not None:
            content = read_checkpoint(self.checkpoint)
            network = content.get("hyper_parameters", {}).get("network")
            check_same_network(network, self.model, self.checkpoint)
            known = content.get("data", {})
            check_same_classes(known, self.describe_data(), self.checkpoint)
            if subcommand != "fit" and (rank := content.get("lora_rank")):
                add_lora(self.model.network, rank)  # as the checkpoint has it
        elif subcommand != "fit" and self.options.weights is not None:
            known = load_weights(self.model, self.options.weights)
            check_same_classes(known, self.describe_data(), self.options.weights)
        elif subcommand != "fit":
            self._load_shipped_weights()

    def _load_shipped_weights(self) -> None:
        name = self.shipped
        if name not in store.names():
            raise UserError(
                f"recipe {name!r} ships no weights: give --ckpt_path last, best or a file"
            )
        if "instead_of" in (described := self.describe_data()):
            raise UserError(
                f"the shipped weights of {name} are for {described['instead_of']}, which is "
                "neither on disk nor to be had: set ZOO_DATA to the folder that holds it"
            )
        check_same_classes(load_weights(self.model, name), described, name)

    def after_fit(self) -> None:
        if self.trainer.interrupted or not hasattr(self, "folder"):
            return
        tests = getattr(self.datamodule, "has_test", True) and getattr(self.model, "tests", True)
        if self.options.test_after_fit and tests:
            self.trainer.test(self.model, datamodule=self.datamodule, verbose=False)
        if self.trainer.is_global_zero:
            for logger in self.trainer.loggers:
                logger.save()
            metrics = final_metrics(self.folder / METRICS_FILE)
            record = self.record.write(self.trainer, "finished", metrics=metrics)
            text = summary(self.folder, record, type(self.model).__name__)
            write_text(self.folder / "summary.txt", text)
            print("\n" + text, flush=True)

    def _facts(self, changed: dict[str, Any]) -> dict[str, Any]:
        """What run.json says of a fit from its start; ``changed`` since an earlier part of it."""
        facts = {
            "recipe": self.recipe_name,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "command": shlex.join(["python", "-m", "zoo", self.command, *self.typed]),
            "date": time.strftime("%Y-%m-%d"),
            "versions": versions(),
            "seed": self.options.seed_everything,
            "resumed": self.checkpoint is not None,
            "data": self.describe_data(),
        }
        if changed:
            facts["changed"] = {key: list(pair) for key, pair in changed.items()}
        return facts

    def after_validate(self) -> None:
        self._print_metrics()

    def after_test(self) -> None:
        self._print_metrics()

    def _print_metrics(self) -> None:
        if self.trainer.is_global_zero and hasattr(self, "folder"):
            weights = self.checkpoint or self.options.weights or f"shipped {self.shipped}"
            measured = {k: float(v) for k, v in self.trainer.callback_metrics.items()}
            print("\n".join(metric_lines(measured)))
            print(f"weights: {weights}\nmetrics: {self.folder / METRICS_FILE}")


def run(command: str, arguments: list[str]) -> int:
    """``python -m zoo fit|validate|test|predict …``."""
    # Advice for other people's loaders: ours hold the data in memory and need no workers.
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*Couldn't infer the batch indices.*")
    warnings.filterwarnings("ignore", ".*smaller than the logging interval.*")
    warnings.filterwarnings("ignore", ".*LeafSpec.*is deprecated.*")
    warnings.filterwarnings("ignore", ".*Checkpoint directory .* exists and is not empty.*")
    # Tasks call train(): what is in evaluation mode after it is frozen, as was asked for.
    warnings.filterwarnings("ignore", ".*in eval mode at the start of training.*")
    if command != "fit":  # which alone needs the callbacks that wrote a checkpoint
        warnings.filterwarnings("ignore", ".*callbacks used to create the checkpoint.*")
    keep_freed_memory()
    try:
        ZooCLI(command, pretrained.with_recipe(arguments))
    except _Checked:
        return 0
    except MisconfigurationException as error:  # a setting of the trainer that cannot be
        if debugging():
            raise
        raise UserError(str(error)) from error
    return 0


fit, validate, test, predict = (
    partial(run, command) for command in ("fit", "validate", "test", "predict")
)
