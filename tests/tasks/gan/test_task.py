from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.nn.utils import parametrize

from tests.tasks.gan.helpers import SHORT, fit, small
from zoo import networks
from zoo.data import Digits
from zoo.errors import UserError
from zoo.tasks import GAN
from zoo.tasks.gan.task import Part, variance_within

ROOT = Path(__file__).parents[3]


def unmoved(real: torch.Tensor, labels: torch.Tensor, others: torch.Tensor) -> Part:
    nowhere = torch.zeros(2, len(labels), dtype=torch.int64)
    return Part(real, labels, torch.empty(0), others, nowhere, nowhere)


@pytest.mark.parametrize("one_stage", [False, True])
def test_a_batch_is_a_step_of_each_network_and_counts_once(one_stage: bool) -> None:
    task = small(one_stage=one_stage, ema_decay=None)
    trainer = fit(task, steps=7)
    assert trainer.global_step == 7
    taken = [
        {int(state["step"]) for state in optimizer.state.values()}
        for optimizer in trainer.optimizers
    ]
    assert taken == [{7}, {7}]


def test_schedules_of_both_step_with_the_generator() -> None:
    task = small(schedule="linear", lr=[1e-3, 4e-3], ema_decay=None)
    trainer = fit(task, steps=8)
    rates = [optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers]
    assert rates == pytest.approx([0.0, 0.0], abs=1e-9)
    task = small(schedule="linear", lr=[1e-3, 4e-3], ema_decay=None)
    seen: list[list[float]] = []
    step = task._step

    def watch(*arguments) -> None:
        step(*arguments)
        seen.append([o.param_groups[0]["lr"] for o in task.trainer.optimizers])

    task._step = watch
    fit(task, steps=4)
    falling = torch.tensor([1, 0.75, 0.5, 0.25])[:, None] * torch.tensor([1e-3, 4e-3])
    torch.testing.assert_close(torch.tensor(seen[1::2]), falling)  # at the generator's steps


def test_muon_steps_the_filters_and_adam_what_classes_and_latents_enter_by() -> None:
    task = small(optimizer="muon", optimizer_args={"momentum": 0.5}, one_stage=True, ema_decay=None)
    task.network = networks.SNGAN(10, 1, 8, 16, 8, 8, 1, self_modulation=True)
    before = {name: p.detach().clone() for name, p in task.network.named_parameters()}
    trainer = fit(task, steps=3)
    names = {parameter: name for name, parameter in task.network.named_parameters()}
    by_muon = set()
    for optimizer in trainer.optimizers:
        assert {group["momentum"] for group in optimizer.param_groups} == {0.5}
        assert {tuple(group["betas"]) for group in optimizer.param_groups} == {(0.0, 0.9)}
        by_muon |= {names[p] for p, state in optimizer.state.items() if "momentum_buffer" in state}
    assert all(not torch.equal(before[name], p) for p, name in names.items())
    assert by_muon == {
        name
        for name, parameter in task.network.named_parameters()
        if parameter.ndim == 4 and min(parameter.shape[:2]) > 1
    }


@pytest.mark.parametrize("one_stage", [False, True])
def test_a_step_trains_both_networks(one_stage: bool) -> None:
    task = small(one_stage=one_stage, ema_decay=None)
    before = {name: p.detach().clone() for name, p in task.network.named_parameters()}
    fit(task, steps=3)
    for name, parameter in task.network.named_parameters():
        assert not torch.equal(before[name], parameter), name
    assert all(parameter.requires_grad for parameter in task.network.parameters())


@pytest.mark.parametrize("shift", [0, 2])
def test_in_one_stage_each_network_has_the_gradient_of_its_own_loss(shift: int) -> None:
    options = {"shift": shift, "one_stage": True, "ema_decay": None}
    task = small(optimizer="sgd", lr=1e-9, **options)
    torch.manual_seed(3)
    for parameter in task.network.discriminator.parameters():
        torch.nn.init.normal_(parameter, std=0.2)  # scores on both sides of the hinge
    task.network.discriminator.eval()  # in training each forward takes a step of spectral norm's
    task.data_info = Digits().describe()
    found: list[torch.Tensor] = []

    def keep(loss, network, _) -> None:
        network.zero_grad()
        loss.backward()
        found.append(torch.cat([p.grad.flatten() for p in network.parameters()]))

    task._step = keep
    real, labels = torch.rand(32, 1, 8, 8) * 2 - 1, torch.arange(32) % 10

    def steps(*names: str) -> list[torch.Tensor]:
        task.one_stage = names == ("_both_steps",)
        found.clear()
        for name in names:
            task._noise = torch.Generator().manual_seed(5)  # the same generated images every time
            getattr(task, name)(task._part(real, labels), *[None] * (1 + task.one_stage))
        return [*found]

    made = task(task.draw(32, torch.Generator().manual_seed(5)), labels).detach()
    scores = task._scores(real, made, labels)[1]
    assert (scores < -1).any()
    assert (scores > -1).any()
    turns = steps("_discriminator_step", "_generator_step")
    for ours, theirs in zip(steps("_both_steps"), turns, strict=True):
        # The discriminator's loss has a slope of 0.001 more.
        assert (ours - theirs).norm() < 3e-3 * theirs.norm()


@pytest.mark.filterwarnings("ignore:epoch .* the discriminator has won")
@pytest.mark.parametrize("one_stage", [False, True])
def test_a_discriminator_learns_to_reject_real_images_of_another_class(
    one_stage: bool,
) -> None:
    def margin(mismatch: float) -> float:
        # The generator rests: only the discriminator learns to separate the images.
        options = {"lr": [1e-6, 2e-3], "one_stage": one_stage}
        task = small(mismatch=mismatch, ema_decay=None, **options)
        fit(task, steps=80)
        images, labels = next(iter(task.trainer.datamodule.val_dataloader()))
        with torch.no_grad():
            scores = task.network.discriminator.eval()(
                task._denormalized(images), torch.stack([labels, (labels + 3) % 10], dim=1)
            )
        return float((scores[:, 0] - scores[:, 1]).mean())

    assert margin(1.0) > 0.5
    assert margin(0.0) < 0


def test_mismatch_needs_classes() -> None:
    with pytest.raises(UserError, match=r"model\.mismatch is 1\.0: .* needs two classes"):
        GAN(networks.SNGAN(1, 1, 8, 16, 8, 8, 1), mismatch=1.0)


def test_a_network_without_classes_is_refused() -> None:
    network = networks.SNGAN(1, 1, 8, 16, 8, 8, 1)
    network.num_classes = 0  # as a user's own may have it
    with pytest.raises(UserError, match="a GAN's network has 0 classes: it needs at least one"):
        GAN(network)


def test_another_class_is_any_but_the_images_own() -> None:
    task = small(mismatch=1.0)
    labels = torch.arange(10).repeat_interleave(200)
    others = task._other_classes(labels)
    for label in range(10):
        assert set(others[labels == label].tolist()) == set(range(10)) - {label}


def test_the_mismatched_pairs_are_weighed_and_the_generator_does_not_see_them() -> None:
    real, made = torch.rand(16, 1, 8, 8) * 2 - 1, torch.rand(16, 1, 8, 8) * 2 - 1
    labels = torch.arange(16) % 10
    losses = []
    for mismatch in (0.0, 1.0, 3.0):
        task = small(mismatch=mismatch)
        task.network.discriminator.eval()
        shown = made.clone().requires_grad_()
        part = unmoved(real, labels, (labels + 1) % 10)
        loss, scores = task._discriminator_loss(part, shown)
        slope = torch.autograd.grad(loss, shown)[0]
        losses.append((loss.item(), torch.stack(scores).detach(), slope))
    assert losses[2][0] - losses[0][0] == pytest.approx(3 * (losses[1][0] - losses[0][0]), rel=1e-4)
    assert losses[1][0] > losses[0][0]
    torch.testing.assert_close(losses[0][1:], losses[2][1:])


@pytest.mark.parametrize("one_stage", [False, True])
def test_the_discriminator_sees_all_images_moved_in_training_and_none_in_validation(
    one_stage: bool,
) -> None:
    seen: dict[bool, list[torch.Tensor]] = {True: [], False: []}

    class White(nn.Module):
        def forward(self, latents, labels):
            return latents.new_ones(len(latents), 1, 8, 8) * self.one

    task = small(one_stage=one_stage, shift=2, ema_decay=None)
    white = White()
    white.one = nn.Parameter(torch.ones(1))
    task.network.generator = white
    task._denormalized = lambda images: torch.ones_like(images)
    task.network.discriminator.register_forward_pre_hook(
        lambda module, inputs: seen[module.training].append(inputs[0].detach())
    )
    # A score in validation is of an image as it is; spread needs images that differ.
    task.on_validation_epoch_end = lambda: None
    fit(task, steps=4, limit_val_batches=1)
    assert all((images == 1).all() for images in seen[False])
    assert len(seen[False]) > 0
    for images in seen[True]:  # one image in 25 is where it was
        assert (images == -1).flatten(1).any(1).float().mean() > 0.75
    images = torch.cat(seen[True])
    # Black comes in from one side or the other, by 0 to 2 lines and as many columns.
    black = (images == -1)[:, 0]
    rows, columns = black.all(2), black.all(1)
    assert torch.equal(black, rows[:, :, None] | columns[:, None, :])
    for lines in (rows, columns):
        ends = torch.stack([lines[:, 0], lines[:, -1]])
        assert set(lines.sum(1).tolist()) == {0, 1, 2}
        assert not ends.all(0).any()
        assert not lines[:, 2:-2].any()
        assert ends.float().mean(1).min() > 0.25  # 2 of 5 to each side
    # Real and generated images of a step are moved each by its own.
    both = [part for part in seen[True] if len(part) > 32]
    assert not any(torch.equal(*(part == -1).chunk(2)) for part in both)


def test_one_stage_needs_scores_that_are_each_images_own() -> None:
    network = networks.SNGAN(10, 1, 8, 16, 8, 8, 1)
    network.discriminator.blocks.append(nn.BatchNorm2d(16))
    with pytest.raises(UserError, match=r"one_stage: the discriminator's blocks\.2 ties"):
        GAN(network, one_stage=True)


def test_a_scaled_loss_is_refused() -> None:
    scaled = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    with pytest.raises(UserError, match="16-mixed scales one optimizer's loss"):
        fit(small(), plugins=[scaled])


def test_only_the_generator_is_averaged() -> None:
    """An average of power iterations is none: the discriminator that is kept is the trained one."""
    task = small(ema_decay=0.9)
    live: dict[str, torch.Tensor] = {}

    class Keep(Callback):
        def on_train_batch_end(self, trainer, module, *_) -> None:
            live.update({k: v.clone() for k, v in module.network.state_dict().items()})

    fit(task, steps=30, callbacks=[Keep()])
    kept = task.network.state_dict()
    discriminator = [name for name in kept if name.startswith("discriminator.")]
    assert discriminator
    assert all(torch.equal(kept[name], live[name]) for name in discriminator)
    assert not torch.equal(kept["generator.first.weight"], live["generator.first.weight"])
    weights = [m for m in task.network.discriminator.modules() if parametrize.is_parametrized(m)]
    for module in weights:
        vectors = module.parametrizations.weight[0]
        assert vectors._u.norm().item() == pytest.approx(1, abs=1e-4)


def test_a_collapsed_generator_and_a_discriminator_that_won_are_said() -> None:
    class Same(networks.Generator):
        def forward(self, latents, labels=None):
            return super().forward(latents, labels) * 0 + 0.5

    task = small(ema_decay=None)
    task.network.generator = Same(10, 1, 8, 16, 8, 1)
    with pytest.warns(UserWarning, match="the generator has collapsed: .* 0.00 times as much"):
        trainer = fit(task, steps=3, val_check_interval=3)
    assert trainer.callback_metrics["val/spread"] < 0.01

    task = small(ema_decay=None, lr=1e-9)
    task._score_loss = lambda real, fake: (real + fake).sum() * 0 + 1e-3
    data = Digits(batch_size=64, shift=0)
    trainer = Trainer(
        max_epochs=1,
        limit_train_batches=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    with pytest.warns(UserWarning, match="the discriminator has won"):
        trainer.fit(task, datamodule=data)


def test_a_healthy_start_warns_of_nothing() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(small(ema_decay=None), steps=20)
    assert not [w for w in caught if "collapsed" in str(w.message) or "has won" in str(w.message)]


def test_two_processes_agree_bit_for_bit(tmp_path: Path) -> None:
    command = [
        *(sys.executable, "-m", "zoo", *SHORT, "--trainer.accelerator", "cpu"),
        *("--trainer.devices", "2", "--data.batch_size", "32"),
        "--trainer.callbacks+=tests.helpers.SaveEachRank",
        f"--trainer.callbacks.folder={tmp_path}",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    for name, tensor in first["state"].items():
        if "discriminator" in name or "running" not in name:
            assert torch.equal(tensor, second["state"][name]), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": [1e-3]}, r"model.lr is \[0.001\]: give one number above 0, or two"),
        ({"lr": [1e-3, 0.0]}, "give one number above 0, or two"),
        ({"shift": -1}, "model.shift is -1: it cannot be negative"),
        ({"mismatch": -1.0}, "model.mismatch is -1.0: it cannot be negative"),
        ({"temperature": -0.5}, "model.temperature is -0.5: it cannot be negative"),
        ({"temperature": [1.0] * 9}, "model.temperature has 9 numbers for 10 classes"),
    ],
)
def test_bad_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        small(**options)


def test_a_frozen_part_of_the_discriminator_stays_frozen() -> None:
    task = small(ema_decay=None)
    frozen = task.network.discriminator.blocks[0].conv1
    frozen.requires_grad_(False)
    before = frozen.parametrizations.weight.original.clone()
    fit(task, steps=3)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert torch.equal(frozen.parametrizations.weight.original, before)
    assert task.network.discriminator.linear.bias.requires_grad


def test_variance_within_groups_is_that_of_a_pixel_over_the_images_of_each() -> None:
    images = torch.zeros(5, 1, 1, 2)
    images[:, 0, 0, 0] = torch.tensor([1.0, 3.0, 0.0, 4.0, 9.0])
    # The first pixel varies by 2 and by 8, the second not at all; the last group has one image.
    groups = torch.tensor([0, 0, 1, 1, 2])
    assert variance_within(images, groups).item() == pytest.approx((2 / 2 + 8 / 2) / 2)


def test_it_predicts_no_classes() -> None:
    with pytest.raises(UserError, match="cannot predict classes; use an ImageClassifier"):
        small().predict_step(torch.zeros(1, 1, 8, 8), 0)
