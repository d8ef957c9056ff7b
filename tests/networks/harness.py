"""Small instances of every network: what all of them must do is tested on each of these."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from zoo import networks

NORM_KINDS = ["BatchNorm", "GroupNorm", "LayerNorm", "RMSNorm"]
DROPOUT_KINDS = [
    "element-wise dropout",
    "spatial dropout",
    "attention dropout",
    "stochastic depth",
    "weight dropout",
    "recurrent dropout",
]


def promise(**counts: int) -> dict[str, int]:
    """How often each norm and each kind of dropout is called in one training forward."""
    kinds = [*NORM_KINDS, *DROPOUT_KINDS]
    named = {key.replace("__", "-").replace("_", " "): count for key, count in counts.items()}
    assert set(named) <= set(kinds), named
    return {kind: named.get(kind, 0) for kind in kinds}


@dataclass(frozen=True)
class Case:
    name: str
    args: dict[str, Any]
    image: tuple[int, ...]  # (C, H, W); of a language network (T,), of a generator (Z,)
    promise: dict[str, int]
    pixels: tuple[int, ...] = ()  # (H, W) of an output that has a label for every pixel
    init: str = "he"  # or xavier, transformer: what the weights' variance is held against
    deep: dict[str, Any] = field(default_factory=dict)  # arguments that stack fifty blocks
    # Rates that are off by default, for good reason, and must do what they say when they are on.
    dropping: dict[str, Any] = field(default_factory=dict)

    def build(self, **changes: Any) -> nn.Module:
        torch.manual_seed(0)
        return networks.build({"name": self.name, "args": {**self.args, **changes}})

    def images(self, batch: int = 4) -> Tensor:
        return torch.randn(batch, *self.image, generator=torch.Generator().manual_seed(1))

    def inputs(self, batch: int = 4) -> tuple[Tensor, ...]:
        """What the network's forward takes."""
        if "vocab_size" in self.args:
            generator = torch.Generator().manual_seed(1)
            shape = (batch, *self.image)
            return (torch.randint(self.args["vocab_size"], shape, generator=generator),)
        if self.name in ("Generator", "Discriminator"):
            return self.images(batch), torch.arange(batch) % self.args["num_classes"]
        return (self.images(batch),)

    def __str__(self) -> str:
        detail = "-".join(str(value) for value in self.args.values() if isinstance(value, str))
        return f"{self.name}-{detail}"


RESNET = {"num_classes": 5, "in_channels": 1, "layers": [1, 2], "width": 8}
CONVNET = {"num_classes": 5, "in_channels": 1, "drop_rate": 0.3, "spatial_drop_rate": 0.2}
EFFICIENTNET = {
    "num_classes": 5,
    "in_channels": 1,
    "stages": [[1, 8, 1, 3, 1], [4, 8, 2, 5, 1], [4, 16, 2, 3, 2]],
    "stem_channels": 8,
    "head_channels": 32,
    "stem_stride": 1,
    "drop_rate": 0.3,
    "drop_path_rate": 0.3,
}
VIT = {
    "num_classes": 5,
    "in_channels": 1,
    "image_size": 12,
    "patch_size": 4,
    "embed_dim": 16,
    "depth": 2,
    "num_heads": 2,
    "drop_rate": 0.15,
    "pos_drop_rate": 0.1,
    "attn_drop_rate": 0.2,
    "proj_drop_rate": 0.25,
    "mlp_drop_rate": 0.3,
    "drop_path_rate": 0.35,
}
# Of two blocks: two in each MLP, one after each attention, one on the embeddings, one in the head;
# stochastic depth begins at the second block, with its two branches.
VIT_DROPS = {"element__wise_dropout": 8, "attention_dropout": 2, "stochastic_depth": 2}
TRANSFORMER = {
    "vocab_size": 11,
    "context_length": 12,
    "embed_dim": 16,
    "depth": 2,
    "num_heads": 2,
    "embed_drop_rate": 0.1,
    "attn_drop_rate": 0.15,
    "resid_drop_rate": 0.2,
    "mlp_drop_rate": 0.25,
}
# Of two blocks: one on the embeddings, two after branches and one inside the MLP of each.
TRANSFORMER_DROPS = {"element__wise_dropout": 7, "attention_dropout": 2}
CASES = [
    Case(
        "ResNet",
        {**RESNET, "block": "basic", "stem": "small"},
        (1, 12, 12),
        promise(BatchNorm=8),
        deep={"layers": [50]},
    ),
    Case(
        "ResNet",
        {**RESNET, "block": "bottleneck", "stem": "pool"},
        (1, 12, 12),
        promise(BatchNorm=12),
        deep={"layers": [50]},
    ),
    Case(
        "ResNet",
        {**RESNET, "in_channels": 3, "block": "basic", "stem": "imagenet"},
        (3, 32, 32),
        promise(BatchNorm=8),
    ),
    Case(
        "ResNet",
        {**RESNET, "block": "bottleneck", "stem": "small", "groups": 2, "group_width": 0.5},
        (1, 12, 12),
        promise(BatchNorm=12),
    ),
    Case(
        "ConvNet",
        {**CONVNET, "size": "medium"},
        (1, 12, 12),
        promise(BatchNorm=3, spatial_dropout=1, element__wise_dropout=2),
    ),
    Case(
        "ConvNet",
        {**CONVNET, "size": "small", "batch_norm": False, "spatial": "every"},
        (1, 12, 12),
        promise(spatial_dropout=2, element__wise_dropout=1),
    ),
    Case(
        "ConvNet",
        {**CONVNET, "size": "medium", "drop_kind": "connect", "activation": "tanh"},
        (1, 12, 12),
        promise(BatchNorm=3, spatial_dropout=1, weight_dropout=2),
        init="xavier",
    ),
    Case(
        "DenseNet",
        {
            "num_classes": 5,
            "in_channels": 1,
            "layers": [2, 1],
            "growth": 4,
            "stem_channels": 8,
            "stem": "small",
        },
        (1, 12, 12),
        promise(BatchNorm=9),
        deep={"layers": [50]},
        dropping={"drop_rate": 0.3},
    ),
    Case(
        "PreActResNet",
        {"num_classes": 5, "in_channels": 1, "layers": [1, 2], "width": 8},
        (1, 12, 12),
        promise(BatchNorm=7),
        deep={"layers": [50]},
        dropping={"drop_rate": 0.3},
    ),
    Case(
        "EfficientNet",
        EFFICIENTNET,
        (1, 12, 12),
        # The separable block has two BatchNorms, each of four inverted residuals three; stem, head.
        promise(BatchNorm=16, element__wise_dropout=1, stochastic_depth=3),
        deep={"stages": [[4, 8, 50, 3, 1]], "drop_path_rate": 0.0},
    ),
    Case(
        "EfficientNet",
        {**EFFICIENTNET, "fused": 2},
        (1, 12, 12),
        # Of the three fused blocks each has two BatchNorms.
        promise(BatchNorm=14, element__wise_dropout=1, stochastic_depth=3),
        deep={"stages": [[4, 8, 50, 3, 1]], "fused": 1, "drop_path_rate": 0.0},
    ),
    Case(
        "ViT",
        {**VIT, "norm": "layernorm", "global_pool": "token", "stem": "patch"},
        (1, 12, 12),
        promise(LayerNorm=5, **VIT_DROPS),
        init="transformer",
        deep={"depth": 50, "drop_path_rate": 0.0},
    ),
    Case(
        "ViT",
        {**VIT, "norm": "rmsnorm", "global_pool": "avg", "stem": "conv"},
        (1, 12, 12),
        promise(RMSNorm=5, **VIT_DROPS),
        init="transformer",
        deep={"depth": 50, "drop_path_rate": 0.0},
    ),
    Case(
        "UNet",
        {"num_classes": 5, "in_channels": 1, "width": 8, "depth": 2, "drop_rate": 0.3},
        (1, 12, 12),
        promise(GroupNorm=10, spatial_dropout=1),
        pixels=(12, 12),
    ),
    Case(
        "Transformer",
        {
            **TRANSFORMER,
            "norm": "rmsnorm",
            "positions": "rotary",
            "mlp": "swiglu",
            "num_kv_heads": 1,
        },
        (9,),
        promise(RMSNorm=5, **TRANSFORMER_DROPS),
        init="transformer",
        deep={"depth": 50},
    ),
    Case(
        "Transformer",
        {**TRANSFORMER, "norm": "layernorm", "positions": "learned", "mlp": "gelu", "bias": True},
        (9,),
        promise(LayerNorm=5, **TRANSFORMER_DROPS),
        init="transformer",
        deep={"depth": 50},
    ),
    Case(
        "LSTM",
        {"vocab_size": 11, "dim": 16, "depth": 2, "embed_drop_rate": 0.1, "drop_rate": 0.2},
        (9,),
        promise(element__wise_dropout=2, recurrent_dropout=1),
        init="transformer",
    ),
    Case(
        "Generator",
        {"num_classes": 3, "image_size": 8, "latent_size": 6, "width": 8},
        (6,),
        promise(BatchNorm=5),
        init="xavier",
    ),
    Case("Discriminator", {"num_classes": 3, "width": 8}, (1, 8, 8), promise(), init="xavier"),
]
# Those with classes to tell, in timm's terms.
IMAGE_CASES = [case for case in CASES if hasattr(networks.REGISTRY[case.name], "get_classifier")]
