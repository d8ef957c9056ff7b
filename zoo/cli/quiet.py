"""Keeps out of the commands' output what no user can act upon."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from zoo.core.terminal import plain_warnings

# Messages of Lightning that advertise, describe the machine, or repeat what the zoo prints itself.
# Whatever is not listed here is printed: "Restored all states from …", for example, is what tells
# a user that a run was resumed.
NOTICES = re.compile(
    r"💡 Tip: "
    r"|(\[rank: \d+\] )?Seed set to "  # the summary states it
    r"|(GPU|TPU|HPU|IPU) available: "
    r"|LOCAL_RANK: \d+ - CUDA_VISIBLE_DEVICES"
    r"|Using (16bit|bfloat16) Automatic Mixed Precision"  # config.yaml and run.json state it
    r"|Loading `train_dataloader` to estimate"
    r"|`Trainer\.fit` stopped: `max_(epochs|steps)="  # "No training batches" stays
    r"|Restoring states from the checkpoint path"
    r"|Loaded model weights from the checkpoint"  # followed by "weights: …"
    r"|Found current_model_state in the checkpoint"  # averaged weights and trained ones, as saved
)
LOGGERS = (
    "lightning.pytorch.utilities.rank_zero",
    "lightning.fabric.utilities.seed",
    "lightning.pytorch.accelerators.cuda",
)

WARNINGS = (
    # Advice for other data loaders: ours hold the data in memory and need no workers.
    ".*does not have many workers",
    ".*Couldn't infer the batch indices",
    ".*smaller than the logging interval",
    # The zoo keeps runs apart itself.
    "Checkpoint directory .* exists and is not empty",
    # The zoo's own logger is metrics.csv.
    "Starting from v1.9.0, `tensorboardX` has been removed",
    # Between Lightning and torch.
    ".*LeafSpec.*is deprecated",
)


# Of modules that are frozen or about to be trained; only a task of the zoo sees to that itself.
EVALUATING = r"Found \d+ module\(s\) in eval mode at the start of training"


def _matters(record: logging.LogRecord) -> bool:
    return record.levelno > logging.INFO or not NOTICES.match(record.getMessage())


@contextmanager
def without_notices() -> Iterator[None]:
    """Leaves out the notices and warnings of Lightning that are listed above."""
    loggers = [logging.getLogger(name) for name in LOGGERS]
    # Importing Lightning has replaced the form of warnings by its own.
    with warnings.catch_warnings(), plain_warnings():
        for message in WARNINGS:
            warnings.filterwarnings("ignore", message)
        for logger in loggers:
            logger.addFilter(_matters)
        try:
            yield
        finally:
            for logger in loggers:
                logger.removeFilter(_matters)
