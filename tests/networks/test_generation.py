from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from zoo.networks import LSTM, Transformer, generate
from zoo.networks.generation import choose


class Fixed(nn.Module):
    """Always the same logits."""

    context_length = None

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def make_cache(self) -> None:
        return None

    def forward(self, tokens: Tensor, cache: None = None) -> Tensor:
        return self.logits.expand(*tokens.shape, -1)


def drawn(logits: list[float], count: int = 4000, **settings) -> Tensor:
    """How often each token comes."""
    rows = torch.zeros(count, 1, dtype=torch.long)
    (tokens,) = generate(Fixed(logits), rows, 1, seed=0, **settings)
    return torch.bincount(tokens, minlength=len(logits)) / count


def test_tokens_come_as_often_as_their_probability() -> None:
    logits = [0.0, 1.0, 2.0]
    torch.testing.assert_close(drawn(logits), torch.tensor(logits).softmax(0), atol=0.03, rtol=0)
    hot = drawn(logits, temperature=2.0)
    torch.testing.assert_close(hot, (torch.tensor(logits) / 2).softmax(0), atol=0.03, rtol=0)
    assert drawn(logits, temperature=0)[2] == 1


def test_top_k_keeps_the_k_likeliest() -> None:
    shares = drawn([0.0, 1.0, 2.0, 1.5], top_k=2)
    assert shares[0] == shares[1] == 0
    assert shares[2] > shares[3] > 0.2
    assert (drawn([0.0, 1.0], top_k=9) > 0).all()


@pytest.mark.parametrize(("top_p", "kept"), [(0.4, 1), (0.5, 1), (0.6, 2), (0.81, 3), (1.0, 4)])
def test_top_p_keeps_the_fewest_that_reach_it(top_p: float, kept: int) -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().tolist()
    assert int((drawn(logits, top_p=top_p) > 0).sum()) == kept


def test_the_same_seed_gives_the_same_tokens_whatever_else_is_drawn() -> None:
    network = Transformer(11, 8, 16, 1, 2)
    prompt = torch.zeros(2, 1, dtype=torch.long)
    first = torch.stack(list(generate(network, prompt, 20, seed=3)))
    torch.rand(5)
    again = torch.stack(list(generate(network, prompt, 20, seed=3)))
    other = torch.stack(list(generate(network, prompt, 20, seed=4)))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_it_streams_in_evaluation_mode_and_leaves_every_mode_as_it_was() -> None:
    network = Transformer(11, 8, 16, 2, 2, resid_drop_rate=0.5).train()
    network.blocks[0].eval()
    modes = [module.training for module in network.modules()]
    seen: list[bool] = []
    network.register_forward_hook(lambda module, *_: seen.append(module.training))
    stream = generate(network, torch.zeros(1, 1, dtype=torch.long), 3)
    next(stream)
    assert [module.training for module in network.modules()] == modes
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    assert len(seen) == 1  # nothing is made before it is asked for
    assert len(list(stream)) == 2
    assert not any(seen)


def test_a_recurrent_network_carries_its_state() -> None:
    torch.manual_seed(0)
    network = LSTM(11, 16, 2)
    for parameter in network.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    prompt = torch.randint(11, (2, 4))
    carried = torch.stack(list(generate(network, prompt, 30, temperature=0)))
    read_again = torch.stack(list(generate(network, prompt, 30, temperature=0, cached=False)))
    assert torch.equal(carried, read_again)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt": torch.zeros(1, 0, dtype=torch.long)}, "the prompt is empty"),
        ({"max_new_tokens": -1}, "max_new_tokens is -1"),
        ({"temperature": -0.1}, "temperature is -0.1"),
        ({"top_k": 0}, "top_k is 0"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.1}, "top_p is 1.1"),
    ],
)
def test_settings_out_of_range_are_refused_at_once(settings: dict, message: str) -> None:
    prompt = settings.pop("prompt", torch.zeros(1, 1, dtype=torch.long))
    count = settings.pop("max_new_tokens", 1)
    with pytest.raises(ValueError, match=message):
        generate(Fixed([0.0, 1.0]), prompt, count, **settings)


def test_the_likeliest_token_always_stays() -> None:
    logits = torch.tensor([[5.0, 0.0]])
    generator = torch.Generator().manual_seed(0)
    assert choose(logits, 1.0, None, 1e-6, generator).item() == 0
