from __future__ import annotations

import pytest
import torch
from torch import nn

import zoo
from zoo.networks import ConvNet
from zoo.networks.layers import DropConnect, GaussianDropout


@pytest.mark.parametrize(
    ("size", "parameters"), [("small", 2_722), ("medium", 241_770), ("large", 1_089_786)]
)
def test_sizes(size: str, parameters: int) -> None:
    network = ConvNet(size=size)
    assert sum(p.numel() for p in network.parameters()) == parameters
    for side in (8, 28, 32):
        assert network(torch.zeros(2, 1, side, side)).shape == (2, 10)


@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("spatial", ["last", "every"])
@pytest.mark.parametrize("order", ["norm-first", "act-first", "drop-first"])
def test_the_wrong_orders_are_found_by_the_audit_and_the_right_one_is_clean(
    batch_norm, spatial, order
) -> None:
    network = ConvNet(
        batch_norm=batch_norm, drop_rate=0.3, spatial_drop_rate=0.2, spatial=spatial, order=order
    )
    report = zoo.audit(network, torch.randn(4, 1, 28, 28))
    wrong = batch_norm and (spatial == "every" or order == "drop-first")
    assert report.ok != wrong
    if wrong:
        assert {finding.rule for finding in report.at_least("error")} == {"dropout-before-bn"}


def test_a_bias_only_where_no_batchnorm_follows() -> None:
    for batch_norm in (True, False):
        convs = [m.conv for m in ConvNet(batch_norm=batch_norm).modules() if hasattr(m, "conv")]
        assert len(convs) == 3
        assert all((conv.bias is None) == batch_norm for conv in convs)


def test_batch_norm_after_the_activation_normalizes_what_relu_gives() -> None:
    block = ConvNet(order="act-first").stages[0][0].train()
    out = block(torch.randn(64, 1, 12, 12))
    # Before the activation its output could have neither a mean of 0 nor negative values.
    torch.testing.assert_close(out.mean((0, 2, 3)), torch.zeros(32), atol=1e-5, rtol=0)
    assert (out.amin((0, 2, 3)) < 0).any()
    assert block.conv.bias is not None  # which the activation sees


@pytest.mark.parametrize(
    ("kind", "variance"),
    # fan_in 64 · 9, fan_out 128 · 9
    [("zero", 0.0), ("normal", 1e-4), ("xavier", 2 / 1728), ("he", 2 / 576), ("transformer", 4e-4)],
)
def test_init_draws_every_weight_the_same_way(kind: str, variance: float) -> None:
    network = ConvNet(init=kind)
    weight = network.stages[2][0].conv.weight
    assert weight.var().item() == pytest.approx(variance, rel=0.03)
    assert network.fc.weight.any().item() == (kind != "zero")
    network.reset_classifier(7)
    assert network.fc.weight.any().item() == (kind != "zero")


@pytest.mark.parametrize(
    ("kind", "layer"),
    [("element-wise", nn.Dropout), ("gaussian", GaussianDropout), ("connect", DropConnect)],
)
def test_the_kind_of_dropout_is_the_one_that_was_asked_for(kind: str, layer: type) -> None:
    modules = ConvNet(drop_rate=0.3, drop_kind=kind).modules()
    kinds = (nn.Dropout, GaussianDropout, DropConnect)
    found = [m for m in modules if isinstance(m, kinds) and "0.3" in repr(m)]
    assert len(found) == 2
    assert all(type(module) is layer for module in found)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": "huge"}, "choose small, medium or large"),
        ({"spatial": "first"}, "choose last or every"),
        ({"order": "norm"}, "choose norm-first, act-first or drop-first"),
        ({"init": "ones"}, "choose zero, normal, xavier, he, orthogonal or transformer"),
        ({"drop_kind": "spatial"}, "choose element-wise, gaussian or connect"),
        ({"activation": "gelu"}, "choose relu or tanh"),
        ({"drop_rate": 1.0}, "drop_rate is 1.0"),
        ({"spatial_drop_rate": -0.1}, "spatial_drop_rate is -0.1"),
        ({"in_channels": 0}, "at least 1"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConvNet(**arguments)
