"""A convolution joined with pooling, and its backward, against torch's two, in turns.

Shapes are those of ``gan_fmnist``'s discriminator; the ratio is the time of
torch's convolution and pooling over that of ours. In channels_last, in float32 and,
as the recipe trains, in bfloat16, which a processor without such arithmetic imitates slowly.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from turns import compare

from zoo.networks.fast import PooledConv2d

ROUNDS = 15
SHAPES = {"first block": (256, 32, 28, 28), "second block": (256, 64, 14, 14)}


def by_torch(layer: PooledConv2d, x: Tensor) -> Tensor:
    return F.avg_pool2d(F.conv2d(x, layer.weight, layer.bias, padding=1), 2)


def main() -> None:
    for name, shape in SHAPES.items():
        for dtype in (torch.float32, torch.bfloat16):
            layer = PooledConv2d(shape[1], shape[1]).to(memory_format=torch.channels_last)
            x = torch.randn(shape, dtype=dtype).to(memory_format=torch.channels_last)
            x.requires_grad_()

            def both_ways(
                call: Callable[[Tensor], Tensor], x: Tensor = x, dtype: torch.dtype = dtype
            ) -> Callable[[], None]:
                def run() -> None:
                    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                        y = call(x)
                    y.backward(torch.ones_like(y))

                return run

            ways = {
                "torch's": both_ways(lambda x, layer=layer: by_torch(layer, x)),
                "ours": both_ways(layer),
            }
            compare(f"{name}, {str(dtype)[6:]}", ways, ROUNDS)


if __name__ == "__main__":
    main()
