from __future__ import annotations

import pytest
import torch
from torch import nn

import zoo
from zoo.networks.layers import DropConnect, GaussianDropout, adapt_input, adapt_statistics


def test_a_widened_first_convolution_gives_the_same_output_for_repeated_channels() -> None:
    weight = torch.randn(4, 1, 3, 3)
    images = torch.randn(2, 1, 8, 8)
    expected = nn.functional.conv2d(images, weight)
    widened = adapt_input(weight, 3)
    assert widened.shape == (4, 3, 3, 3)
    torch.testing.assert_close(nn.functional.conv2d(images.repeat(1, 3, 1, 1), widened), expected)


@pytest.mark.parametrize(("old", "new"), [(3, 1), (3, 2), (3, 4), (3, 6), (1, 3), (3, 3)])
def test_other_channels_that_stand_for_the_old_ones_give_the_same_output(old, new) -> None:
    weight, base = torch.randn(4, old, 3, 3), torch.randn(2, min(old, new), 8, 8)
    before = base[:, [i % min(old, new) for i in range(old)]]
    after = base[:, [i % min(old, new) for i in range(new)]]
    torch.testing.assert_close(
        nn.functional.conv2d(after, adapt_input(weight, new)),
        nn.functional.conv2d(before, weight),
        rtol=1e-4,
        atol=1e-4,
    )
    values = [0.1, 0.2, 0.6][:old]
    if (old, new) == (3, 1):
        assert adapt_statistics(values, 1) == pytest.approx([0.3])
    if new >= old:
        assert adapt_statistics(values, new) == pytest.approx([values[i % old] for i in range(new)])


def test_gaussian_dropout_keeps_mean_and_has_the_variance_of_dropout() -> None:
    torch.manual_seed(0)
    ones = torch.ones(200_000)
    drop = GaussianDropout(0.3).train()
    assert drop(ones).mean().item() == pytest.approx(1, abs=0.01)
    assert drop(ones).var().item() == pytest.approx(0.3 / 0.7, rel=0.02)
    assert drop(ones).var().item() == pytest.approx(nn.Dropout(0.3)(ones).var().item(), rel=0.02)
    assert drop.eval()(ones) is ones
    assert GaussianDropout(0.0).train()(ones) is ones


def test_dropconnect_drops_weights_and_keeps_the_expectation() -> None:
    torch.manual_seed(0)
    layer = DropConnect(1000, 200, rate=0.3)
    nn.init.ones_(layer.weight)
    nn.init.constant_(layer.bias, 5.0)
    with torch.no_grad():
        # A single input reads one weight of each unit: kept ones are 1 / 0.7, and biases stay.
        single = layer.train()(torch.eye(1000)) - 5
        assert (single.abs() < 1e-5).float().mean().item() == pytest.approx(0.3, abs=0.006)
        assert single.mean().item() == pytest.approx(1, abs=0.01)
        # One mask a batch: rows that are equal stay equal.
        pair = layer(torch.ones(2, 1000))
        assert torch.equal(pair[0], pair[1])
        plain = nn.Linear(1000, 200)
        plain.load_state_dict(layer.state_dict())
        x = torch.randn(3, 1000)
        assert torch.equal(layer.eval()(x), plain(x))


def test_dropout_kinds_are_seen_by_the_audit() -> None:
    """Noise before a BatchNorm is no better for being Gaussian; DropConnect is weight dropout."""
    gaussian = nn.Sequential(
        nn.Linear(8, 8), nn.ReLU(), GaussianDropout(0.3), nn.Linear(8, 8), nn.BatchNorm1d(8)
    )
    assert {f.rule for f in zoo.audit(gaussian, torch.randn(16, 8)).at_least("error")} == {
        "dropout-before-bn"
    }
    assert zoo.audit(DropConnect(8, 8, 0.3), torch.randn(4, 8)).seen == {"weight dropout": 1}
