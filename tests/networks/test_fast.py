from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import zoo
from zoo.networks import fast
from zoo.networks.fast import (
    FastDropout,
    PooledConv2d,
    RMSNorm,
    attend,
    dropout,
)


class Calls(nn.Module):
    """One call of an operation, and a weight to train."""

    def __init__(self, call: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.call, self.weight = call, nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.call(x * self.weight)


class Pooled(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(super().forward(x), 2)


def attention(x: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(x, x, x, dropout_p=0.3)


# Of each operation what a module with it is, and one with torch's call.
OPERATIONS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    "PooledConv2d": (lambda: PooledConv2d(4, 3), lambda: Pooled(4, 3, 3, padding=1)),
    "dropout": (
        lambda: Calls(lambda x: dropout(x, 0.3)),
        lambda: Calls(lambda x: F.dropout(x, 0.3)),
    ),
    "FastDropout": (lambda: FastDropout(0.3), lambda: nn.Dropout(0.3)),
    "RMSNorm": (lambda: RMSNorm(8, 1e-5), lambda: nn.RMSNorm(8, 1e-5)),
    "attend": (lambda: Calls(lambda x: attend(x, x, x, 0.3)), lambda: Calls(attention)),
}


SHAPES = {"aten::size", "aten::Int", "aten::ne"}  # what a trace keeps of reading a shape


@pytest.mark.parametrize("name", OPERATIONS)
def test_what_is_exported_or_traced_is_torchs_own_call(name: str) -> None:
    x = torch.randn(2, 4, 6, 8).to(memory_format=torch.channels_last)
    exported, traced = [], []
    for make in OPERATIONS[name]:
        module = make().train()
        graph = torch.export.export(module, (x,)).graph
        exported.append([node.target for node in graph.nodes if node.op == "call_function"])
        lowered = torch.jit.trace(module, x, check_trace=False).inlined_graph
        kinds = [node.kind() for node in lowered.nodes() if node.kind().startswith("aten::")]
        traced.append([kind for kind in kinds if kind not in SHAPES])
    assert exported[0] == exported[1]
    assert exported[0]
    assert traced[0] == traced[1]


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


@pytest.mark.parametrize("size", [(6, 8), (5, 7), (2, 2)])
def test_a_convolution_joined_with_pooling_is_the_two_of_them(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layer, both = PooledConv2d(3, 4).double(), Pooled(3, 4, 3, padding=1).double()
    both.load_state_dict(layer.state_dict())
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    results = []
    for each in (layer, both):
        out = each(x)
        places = (x, each.weight, each.bias)
        results.append((out, *torch.autograd.grad(out.square().sum(), places)))
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("sees", ["all", "causal", "mask"])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_attention_is_torchs_whichever_way_it_is_computed(sees: str, kv_heads: int) -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(2, heads, 9, 8, requires_grad=True) for heads in (4, kv_heads, kv_heads)]
    mask = torch.rand(9, 9) < 0.5
    mask |= torch.eye(9, dtype=torch.bool)  # each query sees a key
    causal, mask = sees == "causal", mask if sees == "mask" else None
    expected = nn.functional.scaled_dot_product_attention(
        *inputs, mask, is_causal=causal, enable_gqa=kv_heads != 4
    )
    theirs = torch.autograd.grad(expected.square().sum(), inputs)
    for dtype, tolerance in ((torch.float64, 1e-5), (torch.float32, 1e-5), (torch.bfloat16, 3e-2)):
        ours = attend(*(x.to(dtype) for x in inputs), causal=causal, mask=mask)
        torch.testing.assert_close(ours.float(), expected, atol=tolerance, rtol=tolerance)
        gradients = torch.autograd.grad(ours.float().square().sum(), inputs)
        for got, wanted in zip(gradients, theirs, strict=True):
            torch.testing.assert_close(got, wanted, atol=5 * tolerance, rtol=5 * tolerance)


@pytest.mark.parametrize("sees", ["all", "causal", "mask"])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_attention_that_drops_is_the_plain_formula(
    sees: str, kv_heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the mask of dropout known, values and gradients in float64 are the definition's."""
    torch.manual_seed(0)
    inputs = [
        torch.randn(2, heads, 9, 8, dtype=torch.float64, requires_grad=True)
        for heads in (4, kv_heads, kv_heads)
    ]
    kept = (torch.rand(2, 4, 9, 9, dtype=torch.float64) < 0.7) / 0.7
    monkeypatch.setattr(fast, "dropout", lambda x, rate: x * kept)
    mask = torch.rand(9, 9) < 0.5
    mask |= torch.eye(9, dtype=torch.bool)
    seen = {"all": None, "causal": torch.ones(9, 9, dtype=torch.bool).tril(), "mask": mask}[sees]
    ours = attend(*inputs, 0.3, sees == "causal", mask if sees == "mask" else None)
    q, k, v = inputs
    k, v = (x.repeat_interleave(4 // kv_heads, dim=1) for x in (k, v))
    scores = torch.einsum("bhtd,bhsd->bhts", q, k) / 8**0.5
    if seen is not None:
        scores = torch.where(seen, scores, -torch.inf)
    expected = (scores.softmax(-1) * kept) @ v
    torch.testing.assert_close(ours, expected)
    got, wanted = (torch.autograd.grad(out.square().sum(), inputs) for out in (ours, expected))
    torch.testing.assert_close(got, wanted)


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
