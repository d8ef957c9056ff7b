"""Hugging Face's Llama and GPT-2 as a ``Transformer``, which gives the same logits.

The configuration belongs to the weights: the epsilon of the norms and the base of the rotary
frequencies are not tensors, and weights run with others give wrong logits without an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from zoo.core.text import shown
from zoo.networks.transformer import Transformer


def from_llama(weights: Mapping[str, Tensor], config: Any) -> Transformer:
    """Builds the ``Transformer`` that computes what a ``LlamaForCausalLM`` does.

    Args:
        weights: its state dict.
        config: its ``LlamaConfig``, or the content of its ``config.json``.

    Returns:
        The network with the weights, in training mode.

    Raises:
        ValueError: the configuration asks for what ``Transformer`` does not compute, scaled rotary
            positions for example, or the weights are of other sizes.
    """
    get = _reader(config)
    width, heads = get("hidden_size"), get("num_attention_heads")
    rope = get("rope_parameters") or get("rope_scaling") or {}
    _refuse(
        "Llama",
        {
            "model_type": (get("model_type", "llama"), "llama"),
            "hidden_act": (get("hidden_act", "silu"), "silu"),
            "attention_bias": (bool(get("attention_bias")), False),
            "mlp_bias": (bool(get("mlp_bias")), False),
            "head_dim": (get("head_dim") or width // heads, width // heads),
            "rope_type": (rope.get("rope_type", rope.get("type", "default")), "default"),
            "partial_rotary_factor": (rope.get("partial_rotary_factor", 1.0), 1.0),
            "quantization_config": (get("quantization_config"), None),
        },
    )
    network = Transformer(
        vocab_size=get("vocab_size"),
        context_length=get("max_position_embeddings"),
        embed_dim=width,
        depth=get("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=get("num_key_value_heads") or heads,
        hidden_dim=get("intermediate_size"),
        tied=bool(get("tie_word_embeddings", False)),
        norm_eps=get("rms_norm_eps", 1e-6),
        rotary_base=float(rope.get("rope_theta") or get("rope_theta") or 10_000.0),
    )
    return _loaded(network, _llama_names(weights))


def from_gpt2(weights: Mapping[str, Tensor], config: Any) -> Transformer:
    """Builds the ``Transformer`` that computes what a ``GPT2LMHeadModel`` does.

    Args:
        weights: its state dict.
        config: its ``GPT2Config``, or the content of its ``config.json``.

    Returns:
        The network with the weights, in training mode.

    Raises:
        ValueError: the configuration asks for what ``Transformer`` does not compute, or the weights
            are of other sizes.
    """
    get = _reader(config)
    activation = get("activation_function", "gelu_new")
    mlp: Any = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}.get(
        activation
    )
    _refuse(
        "GPT-2",
        {
            "model_type": (get("model_type", "gpt2"), "gpt2"),
            "activation_function": (activation, activation if mlp else "gelu_new"),
            "scale_attn_weights": (get("scale_attn_weights", True), True),
            "scale_attn_by_inverse_layer_idx": (
                bool(get("scale_attn_by_inverse_layer_idx")),
                False,
            ),
            "add_cross_attention": (bool(get("add_cross_attention")), False),
            "quantization_config": (get("quantization_config"), None),
        },
    )
    network = Transformer(
        vocab_size=get("vocab_size"),
        context_length=get("n_positions"),
        embed_dim=get("n_embd"),
        depth=get("n_layer"),
        num_heads=get("n_head"),
        hidden_dim=get("n_inner") or 4 * get("n_embd"),
        norm="layernorm",
        positions="learned",
        mlp=mlp,
        tied=bool(get("tie_word_embeddings", True)),
        bias=True,
        norm_eps=get("layer_norm_epsilon", 1e-5),
    )
    return _loaded(network, _gpt2_names(weights))


def _reader(config: Any) -> Any:
    """``get`` of a configuration, be it an object or the content of its file."""
    if isinstance(config, Mapping):
        return config.get
    return lambda key, default=None: getattr(config, key, default)


def _refuse(model: str, settings: dict[str, tuple[Any, Any]]) -> None:
    for name, (there, here) in settings.items():
        if there != here:
            raise ValueError(
                f"{model}'s {name} is {shown(there)}: Transformer computes {shown(here)} alone"
            )


def _loaded(network: Transformer, weights: dict[str, Tensor]) -> Transformer:
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise ValueError(f"the weights are not those of the configuration: {lines[1]}") from None
    return network


def _llama_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict under the names of ``Transformer``."""
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
    return _with_head(renamed)


def _gpt2_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict under the names of ``Transformer``."""
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
    return _with_head(renamed)


def _with_head(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Files with tied weights may leave the head out."""
    if "embed.weight" in weights:
        weights.setdefault("head.weight", weights["embed.weight"])
    return weights


def _rename(name: str, names: dict[str, str]) -> str:
    for old, new in names.items():
        name = name.replace(old, new)
    return name
