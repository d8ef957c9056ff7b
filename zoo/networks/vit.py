"""Vision transformer: LayerNorm or RMSNorm before every branch, and dropout at five places.

Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, section 3.1. Nothing in it
normalizes over the batch, so dropout shifts no running statistics and may stand inside the
network: on the embeddings, on the attention weights, after the attention's projection, in the MLP,
before the head, each with its own rate; and whole branches are dropped by stochastic depth (Huang
et al., ECCV 2016). Parameter names are timm's, so that published weights load with ``strict=True``.

Shapes: B batch, C channels, H height, W width, T tokens, D embedding, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypedDict, Unpack

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.networks.base import JOINS_PREVIOUS, ImageNetwork, check_choice, check_rates, check_sizes
from zoo.networks.fast import FastDropout, attend
from zoo.networks.initializers import init_transformer
from zoo.networks.layers import make_norm


class PatchEmbed(nn.Module):
    """Non-overlapping patches, each projected to an embedding (section 3.1, equation 1)."""

    def __init__(self, in_channels: int, dim: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, D, H / patch, W / patch)."""
        return self.proj(x)


class ConvPair(nn.Module):
    """ReLU, 3 × 3 convolution, ReLU, 3 × 3 convolution, added to the input (He et al. 2016)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → the same."""
        return x + self.conv2(self.conv1(x.relu()).relu())


class ConvEmbed(nn.Sequential):
    """Stages of a 3 × 3 convolution, strided or not, and residual pairs; then a 1 × 1.

    Neighboring patches overlap, which a small transformer on little data does not learn by
    itself; as Xiao et al. 2021, "Early Convolutions Help Transformers See Better", section 4, but
    with residual pairs in place of BatchNorm. The tokens are those of a small convolutional
    network (the hybrid of Dosovitskiy et al. 2021, section 3.1).
    """

    def __init__(
        self, in_channels: int, dim: int, patch_size: int, stages: Sequence[Sequence[int]] | None
    ) -> None:
        steps = int(math.log2(patch_size))
        if 2**steps != patch_size or steps < 1:
            raise ValueError(
                f"patch_size is {patch_size}: a conv stem needs a power of two, from 2 up"
            )
        if stages is None:
            stages = [(dim // 2 ** (steps - 1 - step), 1, 2) for step in range(steps)]
        given = [list(stage) for stage in stages]
        if any(len(s) != 3 or s[0] < 1 or s[1] < 0 or s[2] not in (1, 2) for s in given):
            raise ValueError(
                f"stem_stages: each is channels, residual pairs and a stride of 1 or 2; got {given}"
            )
        if math.prod(stride for _, _, stride in given) != patch_size:
            raise ValueError(
                f"stem_stages: the strides of {given} make no patch_size of {patch_size}"
            )
        layers: list[nn.Module] = []
        channels = in_channels
        for width, pairs, stride in stages:
            layers.append(nn.Conv2d(channels, width, 3, stride, padding=1, bias=False))
            layers += [ConvPair(width) for _ in range(pairs)]
            channels = width
        super().__init__(*layers, nn.Conv2d(channels, dim, 1))


class Attention(nn.Module):
    """Multi-head self-attention; its dropout is on the attention weights (Vaswani et al. 2017)."""

    def __init__(self, dim: int, num_heads: int, attn_drop: float, proj_drop: float) -> None:
        super().__init__()
        self.num_heads, self.attn_drop = num_heads, attn_drop
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = FastDropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) → the same."""
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.num_heads, dim // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, T, D / num_heads)
        rate = self.attn_drop if self.training else 0.0
        x = attend(q, k, v, rate)
        return self.proj_drop(self.proj(x.transpose(1, 2).flatten(2)))


class MLP(nn.Module):
    """Linear, GELU, dropout, linear, dropout: never dropout before the GELU."""

    def __init__(self, dim: int, hidden: int, drop: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.drop1 = FastDropout(drop)
        self.fc2 = nn.Linear(hidden, dim)
        self.drop2 = FastDropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) → the same."""
        return self.drop2(self.fc2(self.drop1(self.act(self.fc1(x)))))


class Block(nn.Module):
    """Norm, attention, add; norm, MLP, add (section 3.1, equations 2 and 3)."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        norm: Literal["layernorm", "rmsnorm"],
        attn_drop: float,
        proj_drop: float,
        mlp_drop: float,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.norm1 = make_norm(norm, dim)
        self.attn = Attention(dim, num_heads, attn_drop, proj_drop)
        self.norm2 = make_norm(norm, dim)
        self.mlp = MLP(dim, int(dim * mlp_ratio), mlp_drop)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) → the same."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class DropRates(TypedDict, total=False):
    """The rates that ``ViT`` has; 0 where not given."""

    drop_rate: float
    pos_drop_rate: float
    attn_drop_rate: float
    proj_drop_rate: float
    mlp_drop_rate: float
    drop_path_rate: float


def check_pool(global_pool: str, class_token: bool) -> None:
    check_choice("global_pool", global_pool, "token", "avg")
    if global_pool == "token" and not class_token:
        raise ValueError("global_pool is 'token': without a class token choose avg")


class ViT(ImageNetwork):
    """A pre-norm vision transformer.

    Args:
        num_classes: size of the output; 0 returns pooled features.
        in_channels: 1 for grayscale images, 3 for color.
        image_size: height and width that the positions are learned for; other sizes, multiples of
            the patch, have them interpolated.
        patch_size: pixels a side that become a token.
        embed_dim, depth, num_heads, mlp_ratio: size of the transformer.
        norm: ``layernorm``, or ``rmsnorm``, without the mean (Zhang & Sennrich 2019).
        global_pool: ``token``, the class token, or ``avg``, the mean over all patches.
        class_token: prepends a class token; None does so where ``global_pool`` is ``token``.
        stem: ``patch`` or ``conv``.
        stem_stages: channels, residual pairs and stride of a ``conv`` stem's stages; by default
            channels double up to ``embed_dim``, with one pair and a stride of 2.
        drop_rate: rate of dropout before the head.
        pos_drop_rate: rate of dropout on the embeddings.
        attn_drop_rate: rate of dropout on the attention weights.
        proj_drop_rate: rate of dropout after the attention's projection.
        mlp_drop_rate: rate of dropout in the MLP.
        drop_path_rate: rate of stochastic depth at the last block; it grows linearly from 0.

    Raises:
        ValueError: sizes that do not divide, an unknown choice, or a rate outside [0, 1).
    """

    classifier_name = "head"

    def __init__(
        self,
        num_classes: int = 1000,
        in_channels: int = 3,
        image_size: int = 224,
        patch_size: int = 16,
        embed_dim: int = 192,
        depth: int = 12,
        num_heads: int = 3,
        mlp_ratio: float = 4.0,
        norm: Literal["layernorm", "rmsnorm"] = "layernorm",
        global_pool: Literal["token", "avg"] = "token",
        class_token: bool | None = None,
        stem: Literal["patch", "conv"] = "patch",
        stem_stages: Sequence[Sequence[int]] | None = None,
        drop_rate: float = 0.0,
        pos_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        mlp_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        check_sizes(
            num_classes,
            depth=depth,
            in_channels=in_channels,
            image_size=image_size,
            patch_size=patch_size,
            embed_dim=embed_dim,
            num_heads=num_heads,
        )
        if image_size % patch_size:
            raise ValueError(
                f"image_size {image_size} is not a multiple of patch_size {patch_size}"
            )
        if embed_dim % num_heads:
            raise ValueError(f"embed_dim {embed_dim} is not a multiple of num_heads {num_heads}")
        if class_token is None:
            class_token = global_pool == "token"
        check_pool(global_pool, class_token)
        check_choice("stem", stem, "patch", "conv")
        check_rates(
            drop_rate=drop_rate,
            pos_drop_rate=pos_drop_rate,
            attn_drop_rate=attn_drop_rate,
            proj_drop_rate=proj_drop_rate,
            mlp_drop_rate=mlp_drop_rate,
            drop_path_rate=drop_path_rate,
        )

        self.grid = image_size // patch_size
        self.patch_size = patch_size
        if stem_stages is not None and stem == "patch":
            raise ValueError("stem_stages belongs to stem: conv")
        self.patch_embed = (
            ConvEmbed(in_channels, embed_dim, patch_size, stem_stages)
            if stem == "conv"
            else PatchEmbed(in_channels, embed_dim, patch_size)
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim)) if class_token else None
        self.num_prefix_tokens = int(class_token)
        self.global_pool: str = global_pool
        tokens = self.num_prefix_tokens + self.grid**2
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, embed_dim))
        self.pos_drop = FastDropout(pos_drop_rate)
        self.blocks = nn.Sequential(
            *(
                Block(
                    embed_dim,
                    num_heads,
                    mlp_ratio,
                    norm,
                    attn_drop_rate,
                    proj_drop_rate,
                    mlp_drop_rate,
                    drop_path_rate * index / max(1, depth - 1),  # the linear rule
                )
                for index in range(depth)
            )
        )
        self.num_stages = depth
        self.norm = make_norm(norm, embed_dim)
        self.head_drop = FastDropout(drop_rate)
        self.num_features, self.num_classes = embed_dim, num_classes
        self.head: nn.Module = nn.Linear(embed_dim, num_classes) if num_classes else nn.Identity()
        init_transformer(self)
        for parameter in (self.cls_token, self.pos_embed):
            if parameter is not None:
                nn.init.normal_(parameter, std=0.02)

    def no_weight_decay(self) -> set[str]:
        """Lists the parameters that no optimizer should decay, for timm's factory."""
        return {"pos_embed", "cls_token"}

    def _positions(self, height: int, width: int) -> Tensor:
        """Position embeddings (1, T, D), interpolated where the image is not the usual one."""
        if (height, width) == (self.grid, self.grid):
            return self.pos_embed
        extra = self.pos_embed.shape[1] - self.grid**2
        first, grid = self.pos_embed[:, :extra], self.pos_embed[:, extra:]
        square = grid.view(1, self.grid, self.grid, -1).permute(0, 3, 1, 2)
        resized = F.interpolate(square, (height, width), mode="bicubic", antialias=True)
        return torch.cat([first, resized.flatten(2).transpose(1, 2)], 1)

    def forward_stages(self, x: Tensor) -> Iterator[Tensor]:
        """(B, C, H, W) → the tokens (B, T, D) after each block.

        Raises:
            ValueError: height or width is not a multiple of the patch.
        """
        if x.shape[2] % self.patch_size or x.shape[3] % self.patch_size:
            raise ValueError(
                f"an image of {x.shape[2]} × {x.shape[3]} has no whole patches of {self.patch_size}"
            )
        x = self.patch_embed(x)
        positions = self._positions(x.shape[2], x.shape[3])
        x = x.flatten(2).transpose(1, 2)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1)
        x = self.pos_drop(x + positions)
        for block in self.blocks:
            x = self.run(block, x)
            yield x

    def forward_end(self, x: Tensor) -> Tensor:
        """Tokens (B, T, D) → the same, normalized."""
        return self.norm(x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        *,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Any] | tuple[Tensor, list[Any]]:
        """Returns the patches after its blocks; see ``ImageNetwork.forward_intermediates``.

        Args:
            return_prefix_tokens: gives pairs of patches and class token (B, 1, D).
            norm: applies the final norm to each.
            output_fmt: ``NCHW``, maps (B, D, H / patch, W / patch), or ``NLC``, tokens (B, T, D).

        Returns:
            The normalized tokens (B, T, D) after the last block that ran, and the list.
        """
        check_choice("output_fmt", output_fmt, "NCHW", "NLC")
        height, width = x.shape[2] // self.patch_size, x.shape[3] // self.patch_size
        x, blocks, _ = self.take_stages(x, indices, stop_early)
        taken: list[Any] = []
        for tokens in blocks:
            prefix, patches = (self.norm(tokens) if norm else tokens).tensor_split(
                [self.num_prefix_tokens], 1
            )
            if output_fmt == "NCHW":
                patches = patches.transpose(1, 2).unflatten(2, (height, width)).contiguous()
            with_prefix = return_prefix_tokens and self.num_prefix_tokens
            taken.append((patches, prefix) if with_prefix else patches)
        return taken if intermediates_only else (self.norm(x), taken)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, T, D) → logits (B, K), or (B, D) if ``pre_logits``."""
        if self.global_pool == "token":
            pooled = features[:, 0]
        else:
            pooled = features[:, self.num_prefix_tokens :].mean(1)
        return pooled if pre_logits else self.head(self.head_drop(pooled))

    def set_global_pool(self, global_pool: str) -> None:
        has_token = self.cls_token is not None
        check_pool(global_pool, has_token)
        self.global_pool = global_pool
        self.config.update(global_pool=global_pool, class_token=has_token)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return {
            "stem": r"^(?:cls_token|pos_embed|patch_embed)",
            "blocks": [(r"^blocks\.(\d+)\.", None), (r"^norm\.", JOINS_PREVIOUS)],
        }

    def make_classifier(self, num_classes: int) -> nn.Module:
        head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        init_transformer(head)
        return head


def vit_tiny_patch16_224(
    num_classes: int = 1000, in_channels: int = 3, **drop_rates: Unpack[DropRates]
) -> ViT:
    """ViT-Ti/16 (Touvron et al. 2021, table 1): 5.7 M parameters at 1000 classes."""
    return ViT(num_classes, in_channels, embed_dim=192, num_heads=3, **drop_rates)


def vit_small_patch16_224(
    num_classes: int = 1000, in_channels: int = 3, **drop_rates: Unpack[DropRates]
) -> ViT:
    """ViT-S/16 (Touvron et al. 2021, table 1): 22.1 M parameters at 1000 classes."""
    return ViT(num_classes, in_channels, embed_dim=384, num_heads=6, **drop_rates)


def vit_base_patch16_224(
    num_classes: int = 1000, in_channels: int = 3, **drop_rates: Unpack[DropRates]
) -> ViT:
    """ViT-B/16 (Dosovitskiy et al. 2021, table 1): 86.6 M parameters at 1000 classes."""
    return ViT(num_classes, in_channels, embed_dim=768, num_heads=12, **drop_rates)


def vit_base_patch32_224(
    num_classes: int = 1000, in_channels: int = 3, **drop_rates: Unpack[DropRates]
) -> ViT:
    """ViT-B/32 (Dosovitskiy et al. 2021, table 1): 88.2 M parameters at 1000 classes."""
    return ViT(num_classes, in_channels, patch_size=32, embed_dim=768, num_heads=12, **drop_rates)
