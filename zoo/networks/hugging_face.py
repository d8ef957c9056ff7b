"""Weights of Hugging Face's Llama and GPT-2 under the names of ``Transformer``."""

from __future__ import annotations

from torch import Tensor


def from_llama(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Hugging Face's ``LlamaForCausalLM`` state dict under the names of ``Transformer``.

    Of ``Transformer(norm="rmsnorm", positions="rotary", mlp="swiglu", bias=False)``, with the same
    sizes, ``norm_eps`` and ``rotary_base``.
    """
    names = {
        "model.embed_tokens.": "embed.",
        "model.layers.": "blocks.",
        "input_layernorm": "norm1",
        "post_attention_layernorm": "norm2",
        "self_attn.q_proj": "attn.q",
        "self_attn.k_proj": "attn.k",
        "self_attn.v_proj": "attn.v",
        "self_attn.o_proj": "attn.proj",
        "mlp.gate_proj": "mlp.gate",
        "mlp.up_proj": "mlp.up",
        "mlp.down_proj": "mlp.down",
        "model.norm.": "norm.",
        "lm_head.": "head.",
    }
    renamed = {_rename(name, names): tensor for name, tensor in weights.items()}
    renamed.setdefault("head.weight", renamed["embed.weight"])
    return renamed


def from_gpt2(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Hugging Face's ``GPT2LMHeadModel`` state dict under the names of ``Transformer``.

    Of ``Transformer(norm="layernorm", positions="learned", mlp="gelu_tanh", bias=True)`` with the
    same sizes.
    """
    names = {
        "transformer.": "",
        "wte.": "embed.",
        "wpe.": "positions.",
        "h.": "blocks.",
        "ln_1": "norm1",
        "ln_2": "norm2",
        "ln_f.": "norm.",
        "attn.c_proj": "attn.proj",
        "mlp.c_fc": "mlp.up",
        "mlp.c_proj": "mlp.down",
        "lm_head.": "head.",
    }
    renamed = {}
    for name, tensor in weights.items():
        if name.endswith((".attn.bias", ".attn.masked_bias")):  # old files keep the causal mask
            continue
        ours = _rename(name, names)
        if ours.startswith("blocks.") and tensor.ndim == 2:
            tensor = tensor.t()  # GPT-2 keeps (inputs, outputs)
        if "attn.c_attn" in ours:
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                renamed[ours.replace("c_attn", part)] = piece
        else:
            renamed[ours] = tensor
    renamed.setdefault("head.weight", renamed["embed.weight"])
    return renamed


def _rename(name: str, names: dict[str, str]) -> str:
    for old, new in names.items():
        name = name.replace(old, new)
    return name
