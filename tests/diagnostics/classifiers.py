"""A classifier whose true probabilities are known, and held-out data that are drawn from them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

CLASSES = 5


class Overconfident(nn.Module):
    """Gives logits that are 2.5 times those by which ``drawn`` draws the labels."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, CLASSES)
        self.drop = nn.Dropout(0.5)  # has no part in evaluation mode
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            self.linear.weight.copy_(torch.randn(CLASSES, 8, generator=generator))
            self.linear.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return 2.5 * self.linear(self.drop(x))


def drawn(count: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Batches of (inputs, labels)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 8, generator=generator)
    with torch.no_grad():
        p = Overconfident().linear(x).softmax(1)
    labels = torch.multinomial(p, 1, generator=generator)[:, 0]
    return list(zip(x.split(700), labels.split(700), strict=True))


def logits_of(batches: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    model = Overconfident().eval()
    with torch.no_grad():
        logits = torch.cat([model(x) for x, _ in batches]).double()
    return logits, torch.cat([labels for _, labels in batches])
