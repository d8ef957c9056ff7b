from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import zoo
from zoo.networks.fast import (
    FastDropout,
    PixelConv2d,
    PooledConv2d,
    RMSNorm,
    UpsampledConv2d,
    attend,
    dropout,
    global_average,
    scale_channels,
)
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rate", [0.001, 0.1, 0.5, 0.9])
def test_dropout_by_random_bits_is_dropout(rate: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.full((701, 1001), 2.0, dtype=dtype, requires_grad=True)  # no multiple of four
    out = dropout(x, rate)
    kept = out != 0
    error = (rate * (1 - rate) / x.numel()) ** 0.5
    assert (~kept).float().mean().item() == pytest.approx(rate, abs=4 * error)
    precision = 2e-4 if dtype == torch.float32 else 5e-3
    (value,) = out[kept].unique().tolist()
    assert value == pytest.approx(2 / (1 - rate), rel=precision)
    # Neighbors are drawn apart from each other, also those of one random word.
    both = (kept[:, 1:] & kept[:, :-1]).float().mean().item()
    assert both == pytest.approx((1 - rate) ** 2, abs=6 * error)
    (gradient,) = torch.autograd.grad(out.float().sum(), x)
    torch.testing.assert_close(gradient * 2, out)
    torch.manual_seed(5)
    first = dropout(x, rate)
    torch.manual_seed(5)
    assert torch.equal(dropout(x, rate), first)


def test_dropout_is_the_identity_where_it_is_told_to_be() -> None:
    x = torch.randn(4, 5)
    assert torch.equal(dropout(x, 0.0), x)
    assert torch.equal(dropout(x, 0.5, training=False), x)
    assert torch.equal(FastDropout(0.5).eval()(x), x)
    assert not torch.equal(FastDropout(0.5).train()(x), x)


def test_dropout_by_random_bits_is_seen_by_the_audit_with_its_kind() -> None:
    class Attending(nn.Module):
        def forward(self, x):
            return attend(x, x, x, 0.3 if self.training else 0.0)

    report = zoo.audit(Attending(), torch.randn(2, 2, 4, 4, requires_grad=True))
    assert report.seen == {"attention dropout": 1}
    report = zoo.audit(nn.Sequential(nn.Linear(4, 4), FastDropout(0.3)), torch.randn(2, 4))
    assert report.seen == {"element-wise dropout": 1}


def assert_same_both_ways(layer: nn.Conv2d, x: torch.Tensor, expected: torch.Tensor) -> None:
    result = layer(x)
    torch.testing.assert_close(result, expected)
    places = (x, layer.weight, layer.bias)
    for got, wanted in zip(
        torch.autograd.grad(result.square().sum(), places),
        torch.autograd.grad(expected.square().sum(), places),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("size", [(6, 8), (5, 7), (1, 2)])
def test_convolutions_joined_with_pooling_or_upsampling_are_what_they_replace(size) -> None:
    torch.manual_seed(0)
    pooled, upsampled = PooledConv2d(3, 4).double(), UpsampledConv2d(3, 4).double()
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    twice = F.interpolate(x, scale_factor=2.0)
    pairs = [(upsampled, F.conv2d(twice, upsampled.weight, upsampled.bias, padding=1))]
    if min(size) > 1:
        plain = F.conv2d(x, pooled.weight, pooled.bias, padding=1)
        pairs.append((pooled, F.avg_pool2d(plain, 2)))
    for layer, expected in pairs:
        assert_same_both_ways(layer, x, expected)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("colors", [1, 3])
def test_a_convolution_to_pixels_is_a_convolution(colors: int, memory_format) -> None:
    torch.manual_seed(0)
    layer = PixelConv2d(5, colors).double()
    x = torch.randn(2, 5, 4, 7, dtype=torch.float64).contiguous(memory_format=memory_format)
    x.requires_grad_()
    assert_same_both_ways(layer, x, F.conv2d(x, layer.weight, layer.bias, padding=1))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_averages_and_gates_are_the_same_in_every_memory_format(memory_format) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 5, 4, 7).contiguous(memory_format=memory_format).requires_grad_()
    gate = torch.randn(3, 5, requires_grad=True)
    pairs = (
        (global_average(x), x.mean((2, 3))),
        (scale_channels(x, gate), x * gate[:, :, None, None]),
    )
    for ours, expected in pairs:
        torch.testing.assert_close(ours, expected)
        for tensor in (x, gate):
            got, wanted = (
                torch.autograd.grad(
                    one.square().sum(), tensor, retain_graph=True, allow_unused=True
                )[0]
                for one in (ours, expected)
            )
            if wanted is not None:
                torch.testing.assert_close(got, wanted)


def test_dropout_kinds_are_seen_by_the_audit() -> None:
    """Noise before a BatchNorm is no better for being Gaussian; DropConnect is weight dropout."""
    gaussian = nn.Sequential(
        nn.Linear(8, 8), nn.ReLU(), GaussianDropout(0.3), nn.Linear(8, 8), nn.BatchNorm1d(8)
    )
    assert {f.rule for f in zoo.audit(gaussian, torch.randn(16, 8)).at_least("error")} == {
        "dropout-before-bn"
    }
    assert zoo.audit(DropConnect(8, 8, 0.3), torch.randn(4, 8)).seen == {"weight dropout": 1}


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_attention_is_torchs_whichever_way_it_is_computed(causal: bool, kv_heads: int) -> None:
    torch.manual_seed(0)
    q = torch.randn(2, 4, 9, 8, requires_grad=True)
    k, v = torch.randn(2, 2, kv_heads, 9, 8, requires_grad=True).unbind(0)
    expected = nn.functional.scaled_dot_product_attention(
        q, k, v, is_causal=causal, enable_gqa=kv_heads != 4
    )
    for dtype, tolerance in ((torch.float64, 1e-5), (torch.float32, 1e-5), (torch.bfloat16, 3e-2)):
        ours = attend(q.to(dtype), k.to(dtype), v.to(dtype), causal=causal)
        torch.testing.assert_close(ours.float(), expected, atol=tolerance, rtol=tolerance)
        (gradient,) = torch.autograd.grad(ours.float().square().sum(), q)
        (theirs,) = torch.autograd.grad(expected.square().sum(), q, retain_graph=True)
        torch.testing.assert_close(gradient, theirs, atol=5 * tolerance, rtol=5 * tolerance)


def test_attention_with_dropout_keeps_its_expectation_and_its_mask() -> None:
    torch.manual_seed(0)
    q, k = torch.zeros(500, 1, 8, 4, requires_grad=True), torch.zeros(500, 1, 8, 4)
    out = attend(q, k, torch.ones(500, 1, 8, 4), 0.3)
    assert out.mean().item() == pytest.approx(1, abs=0.02)
    seen = torch.ones(8, 8, dtype=torch.bool).tril()
    first = attend(q, k, torch.eye(8, 4).expand(500, 1, 8, 4), 0.3, mask=seen)[:, :, 0]
    kept = first[..., 0]  # the first query sees the first key alone
    assert (kept == 0).float().mean().item() == pytest.approx(0.3, abs=0.08)
    assert not first[..., 1:].any()


def rms_norm(norm: nn.RMSNorm, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What it gives, and the gradients of its input and its weight."""
    leaf = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=x.dtype == torch.bfloat16):
        out = norm(leaf)
    out.square().sum().backward()
    return out.detach(), leaf.grad, norm.weight.grad


@pytest.mark.parametrize("precision", [torch.float64, torch.float32, torch.bfloat16])
def test_rms_norm_trains_as_torchs(precision: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 7, 3, 24, dtype=precision).transpose(1, 2)  # not contiguous
    weight = torch.randn(24)
    results = []
    for kind, dtype in ((RMSNorm, precision), (nn.RMSNorm, precision), (nn.RMSNorm, torch.float64)):
        norm = kind(24, 1e-5, dtype=torch.float32 if dtype == torch.bfloat16 else dtype)
        norm.load_state_dict({"weight": weight})
        results.append(rms_norm(norm, x.to(dtype)))
    for ours, theirs, exact in zip(*results, strict=True):
        assert ours.dtype == theirs.dtype
        if precision == torch.bfloat16:  # a few roundings of up to 0.4 %, where torch has one
            assert (ours - exact).norm() < 0.01 * exact.norm()
        else:
            torch.testing.assert_close(ours, theirs)


def test_rms_norm_that_is_frozen_is_torchs() -> None:
    x, norm = torch.randn(5, 24, requires_grad=True), RMSNorm(24, 1e-5).requires_grad_(False)
    assert torch.equal(norm(x), nn.functional.rms_norm(x, (24,), norm.weight, 1e-5))


def test_rms_norm_predicts_in_half_precision_without_a_warning(recwarn) -> None:
    x, norm = torch.randn(5, 24, dtype=torch.bfloat16), RMSNorm(24, 1e-5)
    torch.set_warn_always(True)
    try:
        with torch.no_grad():
            out = norm(x)
    finally:
        torch.set_warn_always(False)
    assert not recwarn.list
    assert out.dtype == torch.bfloat16
    exact = nn.functional.rms_norm(x.double(), (24,), None, 1e-5)
    assert (out - exact).norm() < 0.01 * exact.norm()


def test_rms_norm_is_differentiated_twice_and_by_function_transforms() -> None:
    torch.manual_seed(0)
    norm = RMSNorm(6, 1e-5, dtype=torch.float64)
    x = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)

    def call(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(norm, {"weight": weight}, (x,))

    assert torch.autograd.gradcheck(call, (x, norm.weight))
    assert torch.autograd.gradgradcheck(call, (x, norm.weight))
    slope = torch.func.grad(lambda x: norm(x).pow(3).sum())
    torch.testing.assert_close(torch.func.vmap(slope)(x), slope(x))
