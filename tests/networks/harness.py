"""Small instances of every network: what all of them must do is tested on each of these."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zoo import networks


@dataclass(frozen=True)
class Case:
    name: str
    args: dict[str, Any]
    image: tuple[int, int, int]  # (C, H, W)

    def build(self, **changes: Any) -> nn.Module:
        torch.manual_seed(0)
        return networks.build({"name": self.name, "args": {**self.args, **changes}})

    def images(self, batch: int = 4) -> Tensor:
        return torch.randn(batch, *self.image, generator=torch.Generator().manual_seed(1))

    def __str__(self) -> str:
        detail = "-".join(str(value) for value in self.args.values() if isinstance(value, str))
        return f"{self.name}-{detail}"


SMALL = {"num_classes": 5, "in_channels": 1, "layers": [1, 2], "width": 8}
CASES = [
    Case("ResNet", {**SMALL, "block": "basic", "stem": "small"}, (1, 12, 12)),
    Case("ResNet", {**SMALL, "block": "bottleneck", "stem": "pool"}, (1, 12, 12)),
    Case("ResNet", {**SMALL, "in_channels": 3, "block": "basic", "stem": "imagenet"}, (3, 32, 32)),
]
