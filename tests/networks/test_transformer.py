from __future__ import annotations

import math

import pytest
import torch
import transformers
from torch import nn

import zoo
from zoo.networks import Transformer, generate
from zoo.networks.hugging_face import from_gpt2, from_llama
from zoo.networks.transformer import Attention, rotate

SMALL = {"vocab_size": 17, "context_length": 16, "embed_dim": 32, "depth": 2, "num_heads": 4}
VARIANTS = [
    {"norm": "rmsnorm", "positions": "rotary", "mlp": "swiglu", "qk_norm": True, "num_kv_heads": 2},
    {"norm": "layernorm", "positions": "learned", "mlp": "gelu", "bias": True, "tied": False},
]
every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=["llama-like", "gpt-like"])


def build(variant: dict, **changes) -> Transformer:
    torch.manual_seed(0)
    network = Transformer(**{**SMALL, **variant, **changes})
    for parameter in network.parameters():  # away from the start, where all logits are alike
        parameter.data += 0.2 * torch.randn_like(parameter)
    return network.eval()


# -- parity ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_llama_of_hugging_face_gives_the_same_logits(kv_heads: int) -> None:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        max_position_embeddings=40,
        rms_norm_eps=1e-3,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        tie_word_embeddings=False,
    )
    theirs = transformers.LlamaForCausalLM(config).eval()
    for parameter in theirs.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    ours = from_llama(theirs.state_dict(), config).eval()
    tokens = torch.randint(50, (2, 40))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=1e-4, atol=1e-4)


LLAMA = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "max_position_embeddings": 40,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_type is 'llama3'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type is 'linear'"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type is 'yarn'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"head_dim": 16}, "head_dim is 16"),
        ({"model_type": "mistral"}, "model_type is 'mistral'"),
        ({}, "the weights are not those of the configuration: Missing key"),
    ],
)
def test_what_a_transformer_does_not_compute_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_llama({}, {**LLAMA, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation_function": "relu"}, "activation_function is 'relu'"),
        ({"scale_attn_weights": False}, "scale_attn_weights is False"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        ({"model_type": "gptj"}, "model_type is 'gptj'"),
    ],
)
def test_what_is_no_gpt2_is_refused(change: dict, message: str) -> None:
    sizes = {"vocab_size": 50, "n_positions": 24, "n_embd": 32, "n_layer": 1, "n_head": 4}
    with pytest.raises(ValueError, match=message):
        from_gpt2({}, {**sizes, **change})


def test_gpt2_of_hugging_face_gives_the_same_logits() -> None:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=50, n_positions=24, n_embd=32, n_layer=3, n_head=4, attn_implementation="eager"
    )
    theirs = transformers.GPT2LMHeadModel(config).eval()
    for parameter in theirs.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    ours = from_gpt2(theirs.state_dict(), config.to_dict()).eval()
    tokens = torch.randint(50, (2, 24))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=1e-4, atol=1e-4)


# -- placement -------------------------------------------------------------------------------------


@every_variant
def test_the_future_never_changes_the_past(variant: dict) -> None:
    network = build(variant)
    tokens = torch.randint(17, (3, 16))
    changed = tokens.clone()
    changed[:, 9:] = (changed[:, 9:] + 1) % 17
    with torch.no_grad():
        before, after = network(tokens), network(changed)
    assert torch.equal(before[:, :9], after[:, :9])
    assert not torch.allclose(before[:, 9:], after[:, 9:])


def test_positions_matter_and_rotary_ones_are_relative() -> None:
    for variant in VARIANTS:
        network = build(variant)
        tokens = torch.tensor([[1, 2, 3, 4]])
        swapped = torch.tensor([[2, 1, 3, 4]])
        with torch.no_grad():
            assert not torch.allclose(network(tokens)[:, -1], network(swapped)[:, -1], atol=1e-4)
    rotary = build(VARIANTS[0]).rotary
    q, k = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)

    def turned(x: torch.Tensor, at: int) -> torch.Tensor:
        return rotate(x, rotary(at, at + 1))

    products = [(turned(q, at + 3) * turned(k, at)).sum().item() for at in (0, 5, 9)]
    assert products == pytest.approx([products[0]] * 3, abs=1e-4)


@every_variant
def test_norms_stand_before_every_branch_and_at_the_end(variant: dict) -> None:
    network = build(variant)
    kind = nn.RMSNorm if variant["norm"] == "rmsnorm" else nn.LayerNorm
    for block in network.blocks:
        assert isinstance(block.norm1, kind)
        assert isinstance(block.norm2, kind)
        assert isinstance(block.attn.q_norm, nn.RMSNorm) == variant.get("qk_norm", False)
    assert isinstance(network.norm, kind)
    assert (network.head.weight is network.embed.weight) == variant.get("tied", True)


def test_attention_drops_weights_at_its_rate_and_keeps_the_expectation() -> None:
    torch.manual_seed(0)
    attention = Attention(8, 2, 2, True, False, 1e-5, 0.3, 0.0).train()
    for layer in (attention.q, attention.k, attention.v):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    nn.init.ones_(attention.v.bias)
    nn.init.eye_(attention.proj.weight)
    nn.init.zeros_(attention.proj.bias)
    with torch.no_grad():  # the last of 16 tokens weighs all of them alike, and all values are 1
        kept = attention(torch.randn(4000, 16, 8), None, None, 0)[:, -1, [0, 4]]
    variance = 0.3 / 0.7 / 16
    assert kept.mean().item() == pytest.approx(1, abs=5 * (variance / kept.numel()) ** 0.5)
    assert kept.var().item() == pytest.approx(variance, rel=0.06)


def test_what_is_added_to_the_residual_stream_starts_smaller() -> None:
    torch.manual_seed(0)
    network = Transformer(65, embed_dim=128, depth=8)
    for block in network.blocks:
        for layer in (block.attn.proj, block.mlp.down):
            assert layer.weight.std().item() == pytest.approx(0.02 / math.sqrt(16), rel=0.03)
        assert block.attn.q.weight.std().item() == pytest.approx(0.02, rel=0.03)


@every_variant
def test_the_audit_is_clean(variant: dict) -> None:
    rates = {f"{place}_drop_rate": 0.1 for place in ("embed", "attn", "resid", "mlp")}
    report = zoo.audit(build(variant, **rates), torch.randint(17, (2, 16)))
    assert not report.at_least("warning"), str(report)


# -- cache -----------------------------------------------------------------------------------------


@every_variant
@pytest.mark.parametrize("cuts", [[1] * 16, [5, 1, 1, 9], [16]])
def test_the_cache_gives_the_logits_of_recomputing(variant: dict, cuts: list[int]) -> None:
    network = build(variant)
    tokens = torch.randint(17, (2, 16))
    cache = network.make_cache()
    with torch.no_grad():
        pieces = [network(part, cache) for part in tokens.split(cuts, 1)]
        torch.testing.assert_close(torch.cat(pieces, 1), network(tokens), rtol=1e-4, atol=1e-5)
    assert cache.seen == 16
    with pytest.raises(ValueError, match="17 tokens, and the context is 16"):
        network(tokens[:, :1], cache)


@every_variant
def test_greedy_tokens_are_those_of_recomputing_past_the_context_too(variant: dict) -> None:
    network = build(variant)
    prompt = torch.randint(17, (2, 5))
    with_cache = torch.stack(list(generate(network, prompt, 60, temperature=0)), 1)
    without = torch.stack(list(generate(network, prompt, 60, temperature=0, cached=False)), 1)
    assert with_cache.shape == (2, 60)
    assert torch.equal(with_cache, without)


# -- bad arguments ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"embed_dim": 30}, "must be a multiple of num_heads"),
        ({"num_kv_heads": 3}, "num_heads of num_kv_heads 3"),
        ({"embed_dim": 36, "num_heads": 4}, "embed_dim / num_heads is odd: 9"),
        ({"norm": "batchnorm"}, "choose rmsnorm or layernorm|choose layernorm or rmsnorm"),
        ({"positions": "sinus"}, "choose rotary or learned"),
        ({"mlp": "relu"}, "choose swiglu, gelu or gelu_tanh"),
        ({"attn_drop_rate": 1.0}, "attn_drop_rate is 1.0"),
        ({"depth": 0}, "depth is 0"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Transformer(**{**SMALL, **arguments})
