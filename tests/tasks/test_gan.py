from __future__ import annotations

import csv
import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.nn.utils import parametrize

import zoo
from zoo import networks
from zoo.checkpoints import store
from zoo.data import Digits
from zoo.errors import UserError
from zoo.tasks import GAN, graphs
from zoo.tasks.gan import Part

ROOT = Path(__file__).parent.parent.parent
SHORT = (
    *("fit", "--recipe", "gan_digits", "--trainer.max_epochs", "2"),
    *("--model.network.generator_width", "8", "--model.network.discriminator_width", "8"),
)


def small(**options) -> GAN:
    torch.manual_seed(0)
    network = networks.SNGAN(10, 1, 8, 16, 8, 8, 1)
    return GAN(network, **{"lr": 1e-3, "schedule": "constant", **options})


def unmoved(real: torch.Tensor, labels: torch.Tensor, others: torch.Tensor) -> Part:
    nowhere = torch.zeros(2, len(labels), dtype=torch.int64)
    return Part(real, labels, torch.empty(0), others, nowhere, nowhere)


def fit(task: GAN, steps: int = 6, **options) -> Trainer:
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(task, datamodule=Digits(batch_size=64, shift=0))
    return trainer


def test_a_run_leaves_grids_an_animation_and_a_model_that_samples(zoo_cli, tmp_path) -> None:
    result = zoo_cli(*SHORT)
    assert result.code == 0, result.err
    run = Path("runs/gan_digits/version_0")
    assert sorted(p.name for p in (run / "samples").iterdir()) == ["0001.png", "0002.png"]
    assert (run / "samples.gif").read_bytes()[:3] == b"GIF"
    with (run / "metrics.csv").open() as file:
        logged = set().union(*({k for k, v in row.items() if v} for row in csv.DictReader(file)))
    assert {"train/loss_discriminator", "train/loss_generator", "val/spread", "lr"} <= logged

    model = zoo.load(run / "checkpoints/last.ckpt")
    images = model.sample(["3", 7, 3], seed=0)
    assert images.shape == (3, 1, 8, 8)
    assert 0 <= images.min() < images.max() <= 1
    assert torch.equal(images, model.sample([3, 7, 3], seed=0))
    assert not torch.equal(images, model.sample([3, 7, 3], seed=1))
    way = model.interpolate("1", "8", steps=5, seed=0)
    assert way.shape == (5, 1, 8, 8)
    assert not torch.equal(way[0], way[-1])
    for labels, message in (
        (["eleven"], "no class named 'eleven'"),
        ([10], "no class 10"),
        (4, "give a class for each image"),
    ):
        with pytest.raises(UserError, match=message):
            model.sample(labels)

    weights = str(run / "checkpoints/last.ckpt")
    drawn = zoo_cli(
        *("sample", "--recipe", "gan_digits", "--ckpt_path", weights, "--to", "out"),
        *("--class", "4", "--images", "3"),
    )
    assert (drawn.code, drawn.out) == (0, "picture: out/samples.png\n")
    between = zoo_cli(
        *("sample", "--recipe", "gan_digits", "--ckpt_path", weights, "--to", "out"),
        *("--interpolate", "1", "8"),
    )
    assert (between.code, between.out) == (0, "picture: out/interpolation.png\n")
    pictures = [Path("out/samples.png").read_bytes()]
    for temperature in ("1", "0.5"):
        arguments = ("--class", "4", "--images", "3", "--temperature", temperature)
        again = zoo_cli(
            *("sample", "--recipe", "gan_digits", "--ckpt_path", weights, "--to", "out"), *arguments
        )
        assert again.code == 0, again.err
        pictures.append(Path("out/samples.png").read_bytes())
    assert pictures[0] == pictures[1] != pictures[2]
    cold = zoo_cli(
        *("sample", "--recipe", "gan_digits", "--ckpt_path", weights, "--temperature", "-1")
    )
    assert (cold.code, cold.err.count("\n")) == (2, 1)
    assert "temperature is -1.0: it cannot be negative" in cold.err
    wrong = zoo_cli("sample", "--recipe", "gan_digits", "--ckpt_path", weights, "--class", "x")
    assert wrong.code == 2
    assert "no class named 'x'" in wrong.err


def test_the_temperature_is_the_deviation_of_the_latents() -> None:
    task = small(temperature=0.5).eval()
    task.data_info = Digits().describe()
    latents = torch.randn(3, 16, generator=torch.Generator().manual_seed(4))
    for given, scale in ((None, 0.5), (0.0, 0.0), (2.0, 2.0)):
        made = task.sample([1, 2, 3], seed=4, temperature=given)
        torch.testing.assert_close(made, task.sample([1, 2, 3], latents=scale * latents))
    # Training and the latents a user gives are as they are.
    drawn = task.draw(3, torch.Generator().manual_seed(4))
    assert torch.equal(drawn, latents)
    still = task.interpolate(1, 2, steps=3, seed=0, temperature=0.0)
    torch.testing.assert_close(still[[0, -1]], task.sample([1, 2], seed=1, temperature=0.0))
    with pytest.raises(UserError, match=r"temperature is -0\.1: it cannot be negative"):
        task.sample([1, 2], temperature=-0.1)
    with pytest.raises(UserError, match=r"temperature is -0\.1: it cannot be negative"):
        task.interpolate(1, 2, temperature=-0.1)


def test_each_class_may_have_a_temperature_of_its_own(tmp_path: Path) -> None:
    own = [0.5 + 0.1 * label for label in range(10)]
    task = small(temperature=own).eval()
    task.data_info = Digits().describe()
    latents = torch.randn(3, 16, generator=torch.Generator().manual_seed(4))
    scales = torch.tensor([[own[7]], [own[0]], [own[7]]])
    made = task.sample([7, 0, 7], seed=4)
    torch.testing.assert_close(made, task.sample([7, 0, 7], latents=scales * latents))
    for given in ([2.0] * 10, 2.0):  # what is given goes before
        other = task.sample([7, 0, 7], seed=4, temperature=given)
        torch.testing.assert_close(other, task.sample([7, 0, 7], latents=2 * latents))
    way = task.interpolate(0, 7, steps=3, seed=4)
    for place, label in ((0, 0), (-1, 7)):
        end = task.interpolate(0, 7, steps=3, seed=4, temperature=own[label])
        torch.testing.assert_close(way[place], end[place])
        assert not torch.allclose(way[1], end[1])

    task.temperature = own[::-1]
    assert task.hparams["temperature"] == own[::-1]
    store.save(task, tmp_path / "kept", {})
    again = zoo.load(tmp_path / "kept")
    assert again.temperature == own[::-1]
    assert torch.equal(again.sample([7], seed=0), task.sample([7], seed=0))
    few = r"temperature has 2 numbers for 10 classes: give one for all, or one each"
    with pytest.raises(UserError, match=few):
        task.temperature = [1.0, 1.0]
    with pytest.raises(UserError, match=few):
        task.sample([1], temperature=[1.0, 1.0])
    with pytest.raises(UserError, match=r"temperature is -1\.0: it cannot be negative"):
        task.temperature = [1.0] * 9 + [-1.0]
    assert task.temperature == own[::-1]
    with pytest.raises(UserError, match="temperature has 1 numbers for 0 classes"):
        GAN(networks.SNGAN(0, 1, 8, 16, 8, 8, 1), temperature=[1.0])


def test_temperatures_of_classes_come_from_the_command_line(zoo_cli) -> None:
    done = zoo_cli(*SHORT, "--model.temperature", "[1,1,1,1,1,1,1,1,1,2]")
    assert done.code == 0, done.err
    model = zoo.load("runs/gan_digits/version_0/checkpoints/last.ckpt")
    assert model.temperature == [1.0] * 9 + [2.0]
    few = zoo_cli(*SHORT, "--model.temperature", "[1, 2]")
    assert (few.code, few.err.count("\n")) == (2, 1)
    assert "model.temperature has 2 numbers for 10 classes" in few.err


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("one_stage", [False, True])
def test_steps_are_the_generators_whatever_the_discriminator_makes(
    steps: int, one_stage: bool
) -> None:
    task = small(discriminator_steps=steps, one_stage=one_stage, ema_decay=None)
    trainer = fit(task, steps=7)
    assert trainer.global_step == 7
    taken = [
        {int(state["step"]) for state in optimizer.state.values()}
        for optimizer in trainer.optimizers
    ]
    assert taken == [{7}, {7 * steps}]


def test_schedules_of_both_step_with_the_generator() -> None:
    task = small(schedule="linear", lr=1e-3, discriminator_lr=4e-3, ema_decay=None)
    trainer = fit(task, steps=8)
    rates = [optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers]
    assert rates == pytest.approx([0.0, 0.0], abs=1e-9)
    task = small(schedule="linear", lr=1e-3, discriminator_lr=4e-3, ema_decay=None)
    seen: list[list[float]] = []
    step = task._step

    def watch(*arguments) -> None:
        step(*arguments)
        seen.append([o.param_groups[0]["lr"] for o in task.trainer.optimizers])

    task._step = watch
    fit(task, steps=4)
    generator = [rates[0] for rates in seen[2::3]]  # two discriminator steps before each
    assert generator == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4])


def test_muon_steps_the_filters_and_adam_what_classes_and_latents_enter_by() -> None:
    task = small(optimizer="muon", momentum=0.5, one_stage=True, ema_decay=None)
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


def test_gradients_are_clipped() -> None:
    task = small(gradient_clip=1e-3, ema_decay=None)
    norms: list[float] = []
    step = task._step

    def watch(loss, network, optimizer) -> None:
        step(loss, network, optimizer)
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        norms.append(float(torch.cat([g.flatten() for g in gradients]).norm()))

    task._step = watch
    fit(task, steps=3)
    assert max(norms) == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("loss", ["hinge", "relativistic"])
@pytest.mark.parametrize("r1", [0.0, 1.0])
@pytest.mark.parametrize("one_stage", [False, True])
def test_every_loss_trains_both(loss: str, r1: float, one_stage: bool) -> None:
    task = small(loss=loss, r1=r1, one_stage=one_stage, ema_decay=None)
    before = {name: p.detach().clone() for name, p in task.network.named_parameters()}
    fit(task, steps=3)
    for name, parameter in task.network.named_parameters():
        # What is added to every verdict alike cancels out where two are compared.
        unmoved = loss == "relativistic" and name == "discriminator.linear.bias"
        assert torch.equal(before[name], parameter) == unmoved, name
    assert all(parameter.requires_grad for parameter in task.network.parameters())


@pytest.mark.parametrize("loss", ["hinge", "relativistic"])
@pytest.mark.parametrize("shift", [0, 2])
def test_in_one_stage_each_network_has_the_gradient_of_its_own_loss(loss: str, shift: int) -> None:
    options = {"loss": loss, "shift": shift, "one_stage": True, "ema_decay": None}
    task = small(optimizer="sgd", lr=1e-9, **options)
    torch.manual_seed(3)
    for parameter in task.network.discriminator.parameters():
        torch.nn.init.normal_(parameter, std=0.2)  # verdicts on both sides of the hinge
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
            task._noise = torch.Generator().manual_seed(5)  # the same made images every time
            getattr(task, name)(task._part(real, labels), *[None] * (1 + task.one_stage))
        return [*found]

    made = task(task.draw(32, torch.Generator().manual_seed(5)), labels).detach()
    verdicts = task._verdicts(real, made, labels)[1]
    assert (verdicts < -1).any()
    assert (verdicts > -1).any()
    turns = steps("_discriminator_step", "_generator_step")
    for ours, theirs in zip(steps("_both_steps"), turns, strict=True):
        # The discriminator's loss has a slope of 0.001 more.
        assert (ours - theirs).norm() < 3e-3 * theirs.norm()


@pytest.mark.filterwarnings("ignore:epoch .* the discriminator has won")
@pytest.mark.parametrize("loss", ["hinge", "relativistic"])
@pytest.mark.parametrize("one_stage", [False, True])
def test_a_discriminator_learns_to_refuse_real_images_of_another_class(
    loss: str, one_stage: bool
) -> None:
    def margin(mismatch: float) -> float:
        # The generator rests: what is told apart is the discriminator's doing alone.
        options = {"lr": 1e-6, "discriminator_lr": 2e-3, "one_stage": one_stage}
        task = small(loss=loss, mismatch=mismatch, ema_decay=None, **options)
        fit(task, steps=40)
        images, labels = next(iter(task.trainer.datamodule.val_dataloader()))
        with torch.no_grad():
            verdicts = task.network.discriminator.eval()(
                task._real(images), torch.stack([labels, (labels + 3) % 10], dim=1)
            )
        return float((verdicts[:, 0] - verdicts[:, 1]).mean())

    assert margin(1.0) > 0.5
    assert margin(0.0) < 0


def test_mismatch_needs_classes() -> None:
    with pytest.raises(UserError, match=r"model\.mismatch is 1\.0: .* needs two classes"):
        GAN(networks.SNGAN(0, 1, 8, 16, 8, 8, 1), mismatch=1.0)


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
        loss, verdicts = task._discriminator_loss(part, shown)
        slope = torch.autograd.grad(loss, shown)[0]
        losses.append((loss.item(), torch.stack(verdicts).detach(), slope))
    assert losses[2][0] - losses[0][0] == pytest.approx(3 * (losses[1][0] - losses[0][0]), rel=1e-4)
    assert losses[1][0] > losses[0][0]
    torch.testing.assert_close(losses[0][1:], losses[2][1:])


@pytest.mark.parametrize("loss", ["hinge", "relativistic"])
@pytest.mark.parametrize("one_stage", [False, True])
def test_the_discriminator_sees_all_images_moved_in_training_and_none_in_validation(
    loss: str, one_stage: bool
) -> None:
    seen: dict[bool, list[torch.Tensor]] = {True: [], False: []}

    class White(nn.Module):
        def forward(self, latents, labels):
            return latents.new_ones(len(latents), 1, 8, 8) * self.one

    task = small(loss=loss, one_stage=one_stage, shift=2, ema_decay=None)
    white = White()
    white.one = nn.Parameter(torch.ones(1))
    task.network.generator = white
    task._real = lambda images: torch.ones_like(images)
    task.network.discriminator.register_forward_pre_hook(
        lambda module, inputs: seen[module.training].append(inputs[0].detach())
    )
    # A verdict in validation is of an image as it is; spread needs images that differ.
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
    # Real and made images of a step are moved each by its own.
    both = [part for part in seen[True] if len(part) > 32]
    assert not any(torch.equal(*(part == -1).chunk(2)) for part in both)


@pytest.fixture
def records(monkeypatch: pytest.MonkeyPatch, recorded_on_the_cpu: list[int]) -> list[int]:
    """Every GAN records; its optimizers keep on the CPU what is there."""
    monkeypatch.setattr(graphs, "make_capturable", lambda optimizer, device: None)
    monkeypatch.setattr(GAN, "_records", lambda self: self.cuda_graph)
    return recorded_on_the_cpu


@pytest.mark.parametrize("one_stage", [False, True])
@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_recorded_steps_are_the_steps_as_written(
    one_stage: bool, optimizer: str, records: list[int]
) -> None:
    options = {"optimizer": optimizer, "one_stage": one_stage, "mismatch": 0.3, "shift": 1}
    options |= {"schedule": "linear", "discriminator_steps": 1 if one_stage else 2}
    runs = []
    for recorded in (False, True):
        task = small(cuda_graph=recorded, **options)
        trainer = fit(task, steps=8)
        assert trainer.global_step == 8
        assert task._graph is None
        assert len(records) == (8 - graphs.WARMUP if recorded else 0)
        runs.append((task.state_dict(), trainer.callback_metrics))
    torch.testing.assert_close(runs[0], runs[1], rtol=0, atol=0)


@pytest.mark.usefixtures("records")
def test_a_recorded_loss_that_is_no_number_stops_the_run() -> None:
    task = small(cuda_graph=True)
    torch.nn.init.constant_(task.network.generator.first.bias, float("nan"))
    with pytest.raises(UserError, match=r"at step 1: the weights have taken it and the last check"):
        fit(task)


@pytest.mark.parametrize(
    ("cuda_graph", "device", "processes", "expected"),
    [
        (True, "cuda:0", 1, True),
        (False, "cuda:0", 1, False),
        (True, "cpu", 1, False),
        (True, "cuda:0", 2, False),
    ],
)
def test_only_a_single_cuda_device_records(
    cuda_graph: bool, device: str, processes: int, expected: bool
) -> None:
    task = small(cuda_graph=cuda_graph)
    task._device = torch.device(device)
    task._trainer = SimpleNamespace(world_size=processes)
    assert task._records() is expected


def test_a_recorded_runs_checkpoint_has_no_tensor_for_a_learning_rate() -> None:
    group = {"lr": torch.tensor(0.5), "capturable": True}
    checkpoint = {"optimizer_states": [{"param_groups": [group]}]}
    small(cuda_graph=True).on_save_checkpoint(checkpoint)
    kept = checkpoint["optimizer_states"][0]["param_groups"]
    assert kept == [{"lr": 0.5, "capturable": False}]
    assert not isinstance(kept[0]["lr"], torch.Tensor)


def test_one_stage_needs_verdicts_that_are_each_images_own() -> None:
    network = networks.SNGAN(10, 1, 8, 16, 8, 8, 1)
    network.discriminator.blocks.append(nn.BatchNorm2d(16))
    with pytest.raises(UserError, match=r"one_stage: the discriminator's blocks\.2 ties"):
        GAN(network, one_stage=True)


def test_a_scaled_loss_is_refused() -> None:
    scaled = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    with pytest.raises(UserError, match="16-mixed scales one optimizer's loss"):
        fit(small(), plugins=[scaled])


def test_r1_is_the_mean_squared_slope_at_real_images() -> None:
    class Slope(nn.Module):
        def forward(self, images, labels):
            return 3 * images.flatten(1).sum(1)

    task = small(r1=2.0, ema_decay=None)
    task.data_info = Digits().describe()
    plain = small(ema_decay=None)
    images, labels = torch.randn(4, 1, 8, 8), torch.arange(4)
    for one in (task, plain):
        one.network.discriminator = Slope()
    made = torch.randn(4, 1, 8, 8)
    part = unmoved(images, labels, labels)
    with_r1, _ = task._discriminator_loss(part, made)
    without, _ = plain._discriminator_loss(part, made)
    assert (with_r1 - without).item() == pytest.approx(0.5 * 2.0 * 9 * 64, rel=1e-4)


def test_the_averaged_generator_has_batchnorm_statistics_of_its_own() -> None:
    task = small(ema_decay=0.9)
    fit(task, steps=30)
    torch.manual_seed(0)
    seen = {}
    for name, module in task.network.generator.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(
                lambda m, inputs, name=name: seen.setdefault(name, inputs[0].detach())
            )
    task.eval()
    with torch.no_grad():
        task(task.draw(4000), torch.arange(4000) % 10)
    first = next(iter(seen))
    norm = task.network.generator.get_submodule(first)
    torch.testing.assert_close(norm.running_mean, seen[first].mean((0, 2, 3)), atol=0.15, rtol=0.15)
    torch.testing.assert_close(norm.running_var, seen[first].var((0, 2, 3)), atol=0.1, rtol=0.25)


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

    task = small(ema_decay=None, lr=1e-9, discriminator_lr=1e-9)
    task._discriminators = lambda real, fake: (real + fake).sum() * 0 + 1e-3
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
        ({"discriminator_steps": 0}, "model.discriminator_steps is 0"),
        ({"loss": "wasserstein"}, "choose hinge or relativistic"),
        ({"r1": -1.0}, "model.r1 cannot be negative"),
        ({"gradient_clip": 0.0}, "model.gradient_clip is above 0"),
        ({"shift": -1}, "model.shift is -1: it cannot be negative"),
        ({"mismatch": -1.0}, "model.mismatch is -1.0: it cannot be negative"),
        ({"temperature": -0.5}, "model.temperature is -0.5: it cannot be negative"),
        ({"temperature": [1.0] * 9}, "model.temperature has 9 numbers for 10 classes"),
    ],
)
def test_bad_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        small(**options)
