"""What no user can act upon is left out, and everything else is printed."""

from __future__ import annotations

import warnings

import pytest
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from zoo.cli.quiet import without_notices


def test_notices_are_left_out_and_messages_stay(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with without_notices():
        for notice in (
            "💡 Tip: For seamless cloud logging",
            "GPU available: False, used: False",
            "Loading `train_dataloader` to estimate number of stepping batches.",
            "`Trainer.fit` stopped: `max_epochs=1` reached.",
            "Restoring states from the checkpoint path at last.ckpt",
        ):
            rank_zero_info(notice)
        assert not caplog.records
        for message in (
            "`Trainer.fit` stopped: No training batches.",
            "Restored all states from the checkpoint at last.ckpt",
            "model.record: the step is not recorded: it",
        ):
            rank_zero_info(message)
    assert len(caplog.records) == 3
    rank_zero_info("GPU available: False, used: False")  # outside, Lightning is as it was
    assert len(caplog.records) == 4


def test_warnings_that_ask_for_something_are_printed() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with without_notices():
            rank_zero_warn("The 'train_dataloader' does not have many workers which may be slow")
            rank_zero_warn("GPU available but not used.")
            rank_zero_warn("trainer.precision is 32-true in place of bf16-mixed")
    assert [str(one.message) for one in caught] == [
        "GPU available but not used.",
        "trainer.precision is 32-true in place of bf16-mixed",
    ]
