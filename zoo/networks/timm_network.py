"""Any network of timm, in any recipe."""

from __future__ import annotations

from typing import Any

from torch import nn

from zoo.core.text import first_line, nearest, shown
from zoo.errors import UserError

# What ``args`` may hold: sizes and rates. Others name files, addresses or code, and a checkpoint,
# whose words these are as well, must not: with ``checkpoint_path`` timm up to 1.0.25 unpickles.
ARGUMENTS = frozenset(
    "act_layer attn_drop_rate base_width cardinality class_token depth depths dims drop_block_rate "
    "drop_path_rate drop_rate dynamic_img_pad dynamic_img_size embed_dim embed_dims expand_ratio "
    "fc_norm final_norm global_pool groups head_hidden_size img_size init_values kernel_size "
    "layer_scale_init_value layers ls_init_value mlp_ratio mlp_ratios no_embed_class norm_eps "
    "norm_layer num_heads output_stride patch_drop_rate patch_size pos_drop_rate pos_embed "
    "pre_norm proj_drop_rate qk_norm qkv_bias reg_tokens stem_size stem_type strict_img_size "
    "swiglu_mlp weight_init width window_size zero_init_last".split()
)


def timm_network(
    name: str,
    pretrained: bool = False,
    num_classes: int = 1000,
    in_channels: int = 3,
    args: dict[str, Any] | None = None,
) -> nn.Module:
    """Builds a network of timm's by name, which a checkpoint can name again.

    Args:
        name: as ``timm.list_models()`` has it.
        pretrained: downloads timm's weights and starts from them.
        num_classes: size of the output.
        in_channels: 1 for grayscale images, 3 for color; timm adapts pretrained filters.
        args: sizes and rates for ``timm.create_model``, such as ``{"drop_rate": 0.2}``; those of
            ``ARGUMENTS`` only, so that a checkpoint cannot name a file or an address.

    Raises:
        UserError: timm has no such network or weights, it refuses an argument, or its weights
            cannot be downloaded.
    """
    import timm

    if not timm.is_model(name):
        raise UserError(
            f"timm has no network named {shown(name)}{nearest(name, timm.list_models())}"
        )
    for key in args or {}:
        if key not in ARGUMENTS:
            raise UserError(
                f"timm_network: args has {shown(key)}, which is not a size or a rate"
                f"{nearest(key, ARGUMENTS)} (zoo.networks.timm_network lists those it takes)"
            )
    if in_channels < 1:
        raise UserError(f"timm's {name} refuses its arguments: in_channels is {in_channels}")
    given = {"num_classes": num_classes, "in_chans": in_channels, **(args or {})}
    try:
        network: nn.Module = timm.create_model(name, pretrained=pretrained, **given)
    except Exception as error:  # timm, torch and huggingface_hub have many kinds of them
        # Of arguments it is one of these; a download fails with OSError or the HTTP client's own.
        of_arguments = isinstance(
            error, TypeError | ValueError | KeyError | RuntimeError | AssertionError
        )
        if pretrained and (isinstance(error, OSError) or not of_arguments):
            raise UserError(
                f"the pretrained weights of timm's {name} cannot be downloaded: "
                f"{first_line(error)}: check the internet connection, or give pretrained: false"
            ) from None
        raise UserError(f"timm's {name} refuses its arguments: {first_line(error)}") from None
    # What a checkpoint keeps: rebuilding it downloads nothing, its weights follow.
    network.zoo_description = {  # type: ignore[assignment]
        "name": "timm_network",
        "args": {
            "name": name,
            "pretrained": False,
            "num_classes": num_classes,
            "in_channels": in_channels,
            "args": args,
        },
    }
    return network
