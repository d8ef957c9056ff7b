from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn

from tests.tasks.harness import CASES, Case, trainer
from zoo import networks
from zoo.data import Digits
from zoo.errors import UserError
from zoo.tasks import ImageClassifier, recorded_step
from zoo.tasks.finite import LATE
from zoo.tasks.recorded_step import RecordedStep

# Skipped with a reason: no machine without one can record. What the recording does in addition to
# CUDA is tested on every machine, by a tape in place of a graph.
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="recording is CUDA's")
DEVICES = ["cpu", pytest.param("cuda", marks=needs_cuda)]


@pytest.fixture
def recording(request: pytest.FixtureRequest) -> Callable[[str], list[int]]:
    """Counts replays on a CPU; on a CUDA device they are CUDA's own."""
    return lambda device: request.getfixturevalue("recorded_on_the_cpu") if device == "cpu" else []


def train(name: str, device: str, recorded: bool, accumulates: bool = False) -> Tensor:
    """Eighteen batches of a small network at a falling learning rate: its final weights."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)).to(device)
    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    arguments = {"lr": 0.01} | ({"momentum": 0.9, "nesterov": True} if name == "sgd" else {})
    optimizer = kinds[name]([{"params": p} for p in network.parameters()], **arguments)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda index: 1 / (1 + index))

    def step(x: Tensor, ends: bool) -> dict[str, Tensor]:
        loss = network(x).square().mean()
        loss.backward()
        if ends:
            optimizer.step()
        return {"loss": loss.detach()}

    once = RecordedStep(step, [optimizer], torch.device(device), accumulates=accumulates)
    for index in range(18):
        x = torch.full((3 if index % 5 else 2, 4), index / 5, device=device)
        ends = not accumulates or index % 3 == 2
        if recorded:
            loss = once(x, ends=ends)["loss"]
        else:
            loss = step(x, ends=ends)["loss"]
            if ends:
                optimizer.zero_grad()
        assert loss.isfinite()
        if ends:
            schedule.step()
        assert not recorded or accumulates or all(p.grad is None for p in network.parameters())
    return torch.cat([p.detach().flatten() for p in network.parameters()]).cpu()


@pytest.mark.filterwarnings("ignore:Detected call of")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("accumulates", [False, True])
@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_replayed_updates_are_the_updates_as_written(
    name: str, accumulates: bool, device: str, recording: Callable[[str], list[int]]
) -> None:
    expected = train(name, device, False, accumulates)
    replays = recording(device)
    torch.testing.assert_close(train(name, device, True, accumulates), expected)
    if device == "cpu":  # the first 3 of a kind and the smaller ones are not
        assert len(replays) == (10 if accumulates else 12)


def test_what_is_unfrozen_between_two_steps_takes_part_in_fused_sgd() -> None:
    """Of a group's parameters some have momentum then, as after a fit that was resumed."""
    expected, found = ([nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))] for _ in "ab")
    for parameters in (expected, found):
        optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True)
        parameters[0].grad = torch.full((3,), 2.0)
        optimizer.step()
        if parameters is found:
            recorded_step.make_capturable(optimizer, torch.device("cpu"))
        parameters[1].grad = torch.full((2,), 3.0)
        for _ in range(2):
            optimizer.step()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


# -- of the tasks ----------------------------------------------------------------------------------

TASKS = {case.name: case for case in CASES if case.alter is None}
TASKS["GAN in one stage"] = replace(
    TASKS["GAN"], options={**TASKS["GAN"].options, "one_stage": True}
)
EVERY = ["ImageClassifier", "Segmenter", "LanguageModel", "GAN", "GAN in one stage"]


class KeepMiddle(Callback):
    """Saves a checkpoint within an epoch."""

    def __init__(self, path: Path, step: int) -> None:
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path, weights_only=False)


def run(
    case: Case, folder: Path, record: bool | str, device: str = "cpu", **settings: Any
) -> tuple[Any, Trainer]:
    """A fit of three epochs with augmentation and a last batch that is smaller."""
    resumed = settings.pop("ckpt_path", None)
    # Rounding grows: Adam's steps of small gradients are as large as others, and Muon scales up
    # what is small in a matrix.
    optimizer = {"GAN": "sgd", "Segmenter": "adamw"}.get(case.name, "muon")
    task = case.task(record=record, schedule="linear", optimizer=optimizer, lr=0.002)
    data: Any = case.make_data(folder)
    if case.name in ("ImageClassifier", "GAN"):  # 4 batches of 32 images and one of 9
        data = Digits(32, validation_size=1300, shift=1, drop_last=False)
    if case.name != "GAN":
        task.double()  # for rounding to stay small
    torch.manual_seed(1)
    fitting = trainer(
        folder,
        **{"limit_val_batches": 1, "accelerator": device, **settings},
        enable_checkpointing="callbacks" in settings,
    )
    fitting.fit(task, datamodule=data, ckpt_path=resumed, weights_only=True if resumed else None)
    return task, fitting


def assert_same(one: Any, other: Any, case: Case) -> None:
    # A learning rate that is a tensor has single precision, and so have Muon's iterations.
    tolerance = {"rtol": 1e-3, "atol": 1e-4} if case.name == "GAN" else {"rtol": 1e-4, "atol": 2e-5}
    for (name, first), second in zip(
        one.state_dict().items(), other.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(
            first.cpu(), second.cpu(), **tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("name", "accumulated"),
    # Lightning accumulates no gradients where a task steps two optimizers.
    [(name, 1) for name in EVERY] + [(name, 2) for name in EVERY if "GAN" not in name],
)
def test_recorded_or_not_the_weights_are_the_same(
    name: str, accumulated: int, device: str, tmp_path: Path, recording: Any
) -> None:
    """With an average, clipping, dropout, augmentation, several groups and a smaller last batch."""
    case = TASKS[name]
    settings = {} if case.name == "GAN" else {"gradient_clip_val": 0.5}
    settings |= {"accumulate_grad_batches": accumulated} if accumulated > 1 else {}
    plain, before = run(case, tmp_path, False, device, **settings)
    replays = recording(device)
    recorded, after = run(case, tmp_path, True, device, **settings)
    assert before.global_step == after.global_step
    if device == "cpu":
        assert len(replays) >= 4
    assert_same(recorded, plain, case)
    expected, found = dict(before.callback_metrics), dict(after.callback_metrics)
    expected.pop("loss", None)
    assert expected.keys() == found.keys() - {"loss"}
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=5e-3, atol=1e-4)
    assert recorded._recorded is None  # it holds memory


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", EVERY)
def test_a_recorded_fit_resumes_in_mid_epoch(
    name: str, device: str, tmp_path: Path, recording: Any
) -> None:
    case, path = TASKS[name], tmp_path / "middle.ckpt"
    recording(device)
    whole, _ = run(case, tmp_path, True, device, callbacks=[KeepMiddle(path, 7)])
    saved = torch.load(path, weights_only=True)
    for state in saved["optimizer_states"]:
        for group in state["param_groups"]:
            assert isinstance(group["lr"], float)
            assert not group.get("capturable")
            assert not group.get("fused")
    assert all(isinstance(lr, float) for s in saved["lr_schedulers"] for lr in s["_last_lr"])
    for record in (True, False):  # it loads where nothing is recorded, too
        resumed, _ = run(case, tmp_path, record, device, ckpt_path=path)
        assert_same(resumed, whole, case)


def bare(case_name: str = "ImageClassifier", **changes: Any) -> Any:
    return TASKS[case_name].task(**changes)


def fake_trainer(**changes: Any) -> Any:
    optimizer = torch.optim.AdamW([nn.Parameter(torch.ones(1))])
    given = {"world_size": 1, "precision_plugin": None, "callbacks": [], "optimizers": [optimizer]}
    return SimpleNamespace(**{**given, **changes})


class Curious(Callback):
    def on_after_backward(self, *_: Any) -> None: ...


class OwnStep(ImageClassifier):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch[0]).sum()


SCALED = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
OBSTACLES = [
    ({"world_size": 2}, "2 devices take part in it"),
    ({"precision_plugin": SCALED}, "16-mixed decides by a value"),
    ({"callbacks": [Curious()]}, "Curious.on_after_backward is called within it"),
    ({"callbacks": [GradientAccumulationScheduler({0: 2})]}, "changes what a step is"),
    ({"optimizers": [torch.optim.LBFGS([nn.Parameter(torch.ones(1))])]}, "LBFGS cannot be"),
]


@pytest.mark.usefixtures("recorded_on_the_cpu")
@pytest.mark.parametrize(("changes", "reason"), OBSTACLES)
def test_what_cannot_be_recorded_is_named(changes: dict[str, Any], reason: str) -> None:
    assert recorded_step.obstacle(bare(), fake_trainer()) is None
    assert reason in str(recorded_step.obstacle(bare(), fake_trainer(**changes)))


@pytest.mark.usefixtures("recorded_on_the_cpu")
def test_a_training_step_of_ones_own_is_not_recorded() -> None:
    network = networks.ResNet(10, 1, block="basic", layers=(1,), width=4, stem="small")
    reason = recorded_step.obstacle(OwnStep(network), fake_trainer())
    assert reason == "OwnStep has a training_step of its own, not training_values"
    assert recorded_step.obstacle(bare("GAN"), fake_trainer()) is None


def test_auto_says_why_a_cpu_does_not_record_and_true_raises(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    case = TASKS["ImageClassifier"]
    run(case, tmp_path, "auto", max_steps=1)
    (line,) = [text for text in caplog.messages if "record" in text]
    assert line.endswith("the step is not recorded: it runs on cpu, and only a CUDA device records")
    run(case, tmp_path, False, max_steps=1)
    assert sum("record" in text for text in caplog.messages) == 1
    with pytest.raises(UserError, match=r"model\.record true: .* it runs on cpu, and only a CUDA"):
        run(case, tmp_path, True, max_steps=1)


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.usefixtures("recorded_on_the_cpu")
def test_a_scaled_step_of_half_precision_runs_as_it_is_written(
    accumulated: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")

    def fit(record: bool | str) -> tuple[ImageClassifier, torch.amp.GradScaler]:
        torch.manual_seed(0)
        network = networks.ConvNet(10, 1, size="small")
        task = ImageClassifier(network, optimizer="adamw", lr=0.002, record=record)
        # So large that steps are left out until it has been halved.
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**22)
        trainer(
            tmp_path,
            max_epochs=2,
            limit_val_batches=0,
            accumulate_grad_batches=accumulated,
            plugins=[MixedPrecision("16-mixed", "cpu", scaler)],
        ).fit(task, datamodule=Digits(128, shift=0))
        return task, scaler

    (found, scaler), (expected, _) = fit("auto"), fit(False)
    assert caplog.text.count("the step is not recorded: trainer.precision 16-mixed decides") == 1
    assert scaler.get_scale() < 2.0**22
    for (name, one), other in zip(
        found.network.state_dict().items(), expected.network.state_dict().values(), strict=True
    ):
        assert one.isfinite().all(), name
        torch.testing.assert_close(one, other)
    torch.manual_seed(0)
    before = networks.ConvNet(10, 1, size="small").fc.weight
    assert not torch.equal(found.network.fc.weight, before)


class Moody(nn.Module):
    """A network that decides by what it sees, or by chance."""

    def __init__(self, decides: Callable[[Tensor], bool]) -> None:
        super().__init__()
        self.fc, self.decides = nn.Linear(64, 10), decides

    def forward(self, x: Tensor) -> Tensor:
        logits = self.fc(x.flatten(1))
        return logits * 2 if self.decides(x) else logits


CHOICES = {
    "waits for a value": lambda x: bool(x.mean() > 0),
    "random numbers on the CPU": lambda x: random.random() < 0.5,
}


@pytest.mark.parametrize("draw", [random.random, np.random.rand, lambda: torch.rand(1)])
def test_numbers_drawn_on_the_cpu_are_noticed(draw: Callable[[], Any]) -> None:
    before = recorded_step.host_draws()
    assert recorded_step.host_draws() == before
    draw()
    assert recorded_step.host_draws() != before


@pytest.mark.parametrize("reason", CHOICES)
def test_a_step_that_decides_in_python_runs_as_it_is_written(
    reason: str, tmp_path: Path, recorded_on_the_cpu: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")

    def fit(record: bool | str) -> ImageClassifier:
        torch.manual_seed(0)
        random.seed(0)
        task = ImageClassifier(Moody(CHOICES[reason]), lr=0.1, record=record)
        trainer(tmp_path, max_steps=8, limit_val_batches=0).fit(task, datamodule=Digits(64))
        return task

    found, expected = fit("auto"), fit(False)
    assert not recorded_on_the_cpu
    assert caplog.text.count("the step is not recorded: it ") == 1
    assert reason in caplog.text
    torch.testing.assert_close(found.state_dict(), expected.state_dict())
    with pytest.raises(UserError, match=f"cannot be recorded: .*{reason}"):
        fit(True)


# -- numbers that are none -------------------------------------------------------------------------


@pytest.mark.usefixtures("recorded_on_the_cpu")
@pytest.mark.parametrize("name", ["ImageClassifier", "GAN"])
def test_a_recorded_loss_that_is_no_number_stops_the_run_within_some_steps(
    name: str, tmp_path: Path
) -> None:
    seen: list[int] = []

    class Poison(Callback):
        def on_train_batch_start(self, trainer: Trainer, module: Any, *_: Any) -> None:
            seen.append(trainer.global_step)
            if trainer.global_step == 6:
                parameter = next(iter(module.parameters()))
                nn.init.constant_(parameter.data, float("nan"))

    message = r"the training loss is nan at step 6: the weights have taken it, and no checkpoint"
    with pytest.raises(UserError, match=message):
        run(TASKS[name], tmp_path, True, callbacks=[Poison()], max_epochs=20)
    assert 6 < seen[-1] <= 6 + LATE


@pytest.mark.usefixtures("recorded_on_the_cpu")
def test_no_state_is_saved_that_is_not_finite(tmp_path: Path) -> None:
    task, fitting = run(TASKS["ImageClassifier"], tmp_path, True, max_steps=5)
    next(iter(task.parameters())).data.flatten()[0] = float("inf")
    with pytest.raises(UserError, match=r"is no longer finite at step 5: it is not saved"):
        fitting.save_checkpoint(tmp_path / "bad.ckpt")
    assert not (tmp_path / "bad.ckpt").exists()
