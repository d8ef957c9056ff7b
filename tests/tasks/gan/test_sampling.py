from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

import zoo
from tests.tasks.gan.helpers import SHORT, small
from zoo import networks
from zoo.checkpoints import store
from zoo.data import Digits
from zoo.errors import UserError
from zoo.tasks import GAN
from zoo.tasks.gan.sampling import slerp


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
    with pytest.raises(UserError, match="temperature has 1 number for 10 classes"):
        GAN(networks.SNGAN(10, 1, 8, 16, 8, 8, 1), temperature=[1.0])


def test_temperatures_of_classes_come_from_the_command_line(zoo_cli) -> None:
    done = zoo_cli(*SHORT, "--model.temperature", "[1,1,1,1,1,1,1,1,1,2]")
    assert done.code == 0, done.err
    model = zoo.load("runs/gan_digits/version_0/checkpoints/last.ckpt")
    assert model.temperature == [1.0] * 9 + [2.0]
    few = zoo_cli(*SHORT, "--model.temperature", "[1, 2]")
    assert (few.code, few.err.count("\n")) == (2, 1)
    assert "model.temperature has 2 numbers for 10 classes" in few.err


def test_slerp_turns_at_an_even_pace() -> None:
    start, end = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])
    thirty = 2 * torch.tensor([3**0.5 / 2, 0.5])
    way = slerp(start, end, torch.tensor([[0.0], [1 / 3], [1.0]]))
    torch.testing.assert_close(way, torch.stack([start, thirty, end]))
