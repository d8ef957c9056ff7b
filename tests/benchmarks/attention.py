"""Attention and its backward: torch's fused call against what our networks do, in turns.

The shapes are those of the recipes; the ratio is the fused call's time over ours. On a GPU, and
without a backward, ours is the fused call.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F
from turns import compare

from zoo.networks.fast import attend

ROUNDS = 7
SHAPES = {  # (B, H, T, d), causal
    "vit_fmnist": ((128, 3, 49, 32), False),
    "gpt_shakespeare": ((12, 4, 64, 32), True),
    "transformer_shakespeare": ((16, 4, 128, 32), True),
}


def main() -> None:
    for name, (shape, causal) in SHAPES.items():
        for dtype in (torch.float32, torch.bfloat16):
            for rate in (0.0, 0.1):
                q, k, v = (torch.randn(shape, dtype=dtype, requires_grad=True) for _ in range(3))
                calls: dict[str, Callable[..., torch.Tensor]] = {
                    "fused": lambda q=q, k=k, v=v, rate=rate, causal=causal: (
                        F.scaled_dot_product_attention(q, k, v, dropout_p=rate, is_causal=causal)
                    ),
                    "ours": lambda q=q, k=k, v=v, rate=rate, causal=causal: attend(
                        q, k, v, rate, causal
                    ),
                }
                timed = {
                    who: lambda call=call: call().sum().backward() for who, call in calls.items()
                }
                compare(f"{name}, {str(dtype)[6:]}, dropout {rate}", timed, ROUNDS)


if __name__ == "__main__":
    main()
