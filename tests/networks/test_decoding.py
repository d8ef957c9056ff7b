"""A token is read in few calls, and where that would leave something out, by the modules."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.networks.test_transformer import VARIANTS, build
from zoo.networks import Transformer
from zoo.networks.decoding import Reader, Step

MIXED = {
    "learned-positions-normed-heads": {
        "positions": "learned",
        "qk_norm": True,
        "norm": "layernorm",
    },
    "bias-and-rmsnorm": {"bias": True, "mlp": "gelu_tanh", "tied": False},
    "bias-and-a-gate": {"bias": True, "norm": "layernorm", "num_kv_heads": 1},
}


def read_last(network: Transformer, tokens: torch.Tensor) -> tuple[torch.Tensor, object]:
    read, cache = Reader(network), network.make_cache()
    read(tokens[:, :-1], cache)
    return read(tokens[:, -1:], cache), read.step


@pytest.mark.parametrize("variant", [*VARIANTS, *MIXED.values()], ids=["llama", "gpt", *MIXED])
@torch.inference_mode()
def test_a_step_of_few_calls_gives_the_logits_of_the_modules(variant: dict) -> None:
    network, tokens = build(variant), torch.randint(17, (3, 9))
    logits, step = read_last(network, tokens)
    assert isinstance(step, Step)
    torch.testing.assert_close(logits, network(tokens)[:, -1:], rtol=1e-4, atol=1e-5)


class Scaled(nn.Linear):
    """What an adapter does: another output than the weights alone give."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 1.5 * super().forward(input)


def put_an_adapter(network: Transformer) -> None:
    old = network.blocks[1].attn.v
    network.blocks[1].attn.v = Scaled(32, old.out_features, bias=False)


def put_a_hook(network: Transformer) -> None:
    network.blocks[0].mlp.register_forward_hook(lambda module, inputs, output: 2 * output)


def put_a_forward(network: Transformer) -> None:
    network.blocks[0].mlp.forward = lambda x: 3 * x


@pytest.mark.parametrize("change", [put_an_adapter, put_a_hook, put_a_forward])
@torch.inference_mode()
def test_modules_that_compute_something_else_are_called(change) -> None:
    network, tokens = build(VARIANTS[0]), torch.randint(17, (2, 9))
    before = network(tokens)[:, -1:]
    change(network.eval())
    network.eval()
    logits, step = read_last(network, tokens)
    assert step is None
    torch.testing.assert_close(logits, network(tokens)[:, -1:], rtol=1e-4, atol=1e-5)
    assert (logits - before).abs().max() > 0.1


@torch.inference_mode()
def test_a_hook_that_comes_later_is_called_too() -> None:
    network, tokens = build(VARIANTS[0]), torch.randint(17, (2, 9))
    read, cache, seen = Reader(network), network.make_cache(), []
    for token in tokens[:, :5].split(1, 1):
        read(token, cache)
    assert isinstance(read.step, Step)
    network.norm.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    logits = read(tokens[:, 5:6], cache)
    assert seen == [(2, 1, 32)]
    torch.testing.assert_close(logits, network(tokens[:, :6])[:, -1:], rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_dropout_that_is_left_on_drops_in_a_step_too() -> None:
    network, tokens = build(VARIANTS[0], resid_drop_rate=0.5), torch.randint(17, (2, 9))
    read, cache = Reader(network), network.make_cache()
    read(tokens[:, :-1], cache)
    for module in network.modules():
        module.training = isinstance(module, nn.Dropout)  # MC dropout
    outputs = []
    for _ in range(2):
        cache.seen = 8
        outputs.append(read(tokens[:, -1:], cache))
    assert not torch.equal(*outputs)


def test_a_step_with_gradients_has_them() -> None:
    network, tokens = build(VARIANTS[0]), torch.randint(17, (2, 9))
    read, cache = Reader(network), network.make_cache()
    with torch.no_grad():
        read(tokens[:, :-1], cache)
    read(tokens[:, -1:], cache).sum().backward()
    assert all(p.grad is not None for name, p in network.named_parameters() if "mlp" in name)


@torch.inference_mode()
def test_half_precision_is_left_to_the_modules() -> None:
    network, tokens = build(VARIANTS[0]), torch.randint(17, (2, 9))
    with torch.autocast("cpu", torch.bfloat16):
        _, step = read_last(network, tokens)
    assert step is None
    _, step = read_last(network.bfloat16(), tokens)
    assert step is None
