"""Nothing in a training step waits for the device, and a loss that is no number is found late."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.tasks.harness import CASES, trainer
from tests.tasks.tape import Passed, Reads
from zoo.tasks import finite
from zoo.tasks.finite import LATE, LateLosses, not_finite

TASKS = {case.name: case for case in CASES if case.alter is None}
every_task = pytest.mark.parametrize("name", TASKS)
needs_cuda = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="a CPU has nothing to wait for"
)
META = torch.device("meta")


class Copies(Reads):
    """Finds copies from the CPU that would wait, too."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        outputs = super().__torch_dispatch__(func, types, args, kwargs)
        moved = isinstance(outputs, Tensor) and isinstance(args[0] if args else None, Tensor)
        if func is torch.ops.aten._to_copy.default and moved:
            waits = not (kwargs or {}).get("non_blocking", False)
            if outputs.device != args[0].device and waits:
                self.found.append(f"{args[0].device} to {outputs.device}")
        return outputs


@every_task
def test_a_step_reads_nothing_of_its_device(name: str, tmp_path: Path) -> None:
    """On the device that has no values, so that reading one is an error as well."""
    task, data = TASKS[name].task(), TASKS[name].data(tmp_path)
    task.data_info = data.describe()
    loaded = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    batch = [part.to(META) for part in loaded]
    task.to(META)
    task._late_losses = object()  # type: ignore[assignment]  # read late
    found: list[str] = []
    if name == "GAN":  # whose networks ask autocast of their device, which has none for this one
        task._noise = torch.Generator().manual_seed(0)
        with Copies(found):
            values = task._part(*batch)._asdict()
    else:
        with Copies(found):
            values = task.training_values(batch)
            task.check_finite(values["loss"]).backward()
            task.training_weight(batch)
    assert not found
    assert all(value.device == META for value in values.values())


class Watched(Callback):
    """Watches a fit from a step on, until an epoch's last batch."""

    def __init__(self, mode: TorchDispatchMode, start: int = 3) -> None:
        self.mode, self.start, self.watching = mode, start, False

    def on_train_epoch_start(self, trainer: Trainer, pl_module: Any) -> None:
        pl_module._late_losses = LateLosses(torch.device("cpu"))

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        last = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if trainer.global_step >= self.start and not self.watching and not last:
            self.watching = True
            self.mode.__enter__()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if self.watching and trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self.watching = False
            self.mode.__exit__(None, None, None)


@every_task
def test_neither_does_what_a_fit_does_around_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finite, "new_event", lambda: Passed(delay=2))
    found: list[str] = []
    watched = Watched(Reads(found))
    case = TASKS[name]
    fitting = trainer(tmp_path, max_epochs=1, limit_val_batches=1, callbacks=[watched])
    # Adam's step count, which it reads, is on the CPU of a CUDA device too.
    fitting.fit(case.task(optimizer="muon"), datamodule=case.data(tmp_path))
    assert fitting.global_step > 10
    read = [one for one in found if "finite.py" not in one]  # losses that are on the host by then
    assert not read
    assert len(read) < len(found)


@needs_cuda
@every_task
@pytest.mark.parametrize("record", ["auto", False])
def test_cuda_finds_no_wait_from_step_20_on(name: str, record: bool | str, tmp_path: Path) -> None:
    class Strict(Callback):
        def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step == 20:
                torch.cuda.set_sync_debug_mode("error")

        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
                torch.cuda.set_sync_debug_mode("default")

    case = TASKS[name]
    try:
        fitting = trainer(
            tmp_path, max_epochs=1, accelerator="cuda", limit_val_batches=0, callbacks=[Strict()]
        )
        fitting.fit(case.task(record=record), datamodule=case.make_data(tmp_path))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert fitting.global_step > 20


def test_losses_are_read_when_they_have_arrived_and_at_most_so_many_steps_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    events = [Passed(delay=10**6) for _ in range(LATE)]
    given = iter(events)
    monkeypatch.setattr(finite, "new_event", lambda: next(given))
    losses = LateLosses(torch.device("cpu"))
    for step in range(LATE):
        assert losses.add(step, torch.tensor(float("nan") if step == 1 else step)) is None
    assert losses.add(LATE, torch.tensor(0.0)) is None  # of step 0, which is waited for
    assert [event.waited for event in events[:2]] == [1, 0]
    assert str(losses.add(LATE + 1, torch.tensor(0.0))) == "(1, nan)"
    assert losses.read(everything=True) is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_state_that_is_not_finite_is_named(value: float) -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.randn(4, 2)).sum().backward()
    optimizer.step()

    def found() -> str | None:
        state = {"weights": network.state_dict(), "optimizers": [optimizer.state_dict()]}
        return not_finite({**state, "epoch": 3, "none": None})

    network.register_buffer("mask", torch.full((2,), value), persistent=False)
    assert found() is None  # what is not saved may be anything
    optimizer.state[network[0].bias]["exp_avg_sq"][1] = value
    assert found() == "optimizers.0.state.1.exp_avg_sq"
    network[1].running_var[1] = value
    assert found() == "weights.1.running_var"
