"""Dropout and its backward on a CPU: torch's against ours, in turns.

Shapes are those of the recipes' networks; the ratio is torch's time over ours. On a GPU ours is
torch's.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F
from turns import compare

from zoo.networks.fast import dropout

ROUNDS = 9
SHAPES = {
    "vit_fmnist, MLP": (128, 49, 192),
    "vit_fmnist, attention": (128, 3, 49, 49),
    "transformer_shakespeare, MLP": (16, 128, 344),
    "transformer_shakespeare, attention": (16, 4, 128, 128),
}


def main() -> None:
    calls: dict[str, Callable[..., torch.Tensor]] = {"torch": F.dropout, "ours": dropout}
    for name, shape in SHAPES.items():
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.randn(shape, dtype=dtype, requires_grad=True)
            timed = {
                who: lambda call=call, x=x: call(x, 0.1).sum().backward()
                for who, call in calls.items()
            }
            compare(f"{name}, {str(dtype)[6:]}", timed, ROUNDS)


if __name__ == "__main__":
    main()
