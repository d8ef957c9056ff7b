from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import zoo
from zoo.diagnostics.forward import forward_batch, logits_in
from zoo.errors import UserError

LOGITS, OTHER = torch.ones(2, 3), torch.zeros(2)


@pytest.mark.parametrize(
    "output",
    [
        LOGITS,
        (LOGITS, OTHER),
        {"loss": OTHER, "logits": LOGITS},
        SimpleNamespace(logits=LOGITS),
        {"first": LOGITS, "second": OTHER},
    ],
    ids=["tensor", "tuple", "named in a dict", "an attribute", "the first of a dict"],
)
def test_logits_are_found(output: object) -> None:
    assert logits_in(output) is LOGITS


def test_an_output_without_a_tensor_is_reported() -> None:
    with pytest.raises(UserError, match="the model gives str, in which there are no logits"):
        logits_in("cat")


class Named(nn.Linear):
    def forward(self, *, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)


def test_a_batch_is_a_tensor_a_pair_or_keywords() -> None:
    x, plain, named = torch.randn(4, 3), nn.Linear(3, 2), Named(3, 2)
    expected = plain(x)
    assert torch.equal(forward_batch(plain, x), expected)
    assert torch.equal(forward_batch(plain, (x, torch.arange(4))), expected)
    assert torch.equal(forward_batch(plain, [x]), expected)
    assert torch.equal(forward_batch(named, {"x": x}), named(x=x))


@pytest.mark.parametrize("tool", [zoo.calibrate, zoo.variance_shift, zoo.recalibrate])
@pytest.mark.parametrize("layer", [nn.Linear(4, 3), nn.Conv1d(4, 3, 1)], ids=["linear", "conv"])
def test_bytes_of_a_loader_are_named(tool: Callable[..., object], layer: nn.Module) -> None:
    """Loaders of images in memory give bytes, which Lightning's hook normalizes."""
    model = nn.Sequential(layer, nn.BatchNorm1d(3), nn.Flatten())
    shape = (8, 4) if isinstance(layer, nn.Linear) else (8, 4, 1)
    images, labels = torch.randint(0, 256, shape, dtype=torch.uint8), torch.arange(8) % 3
    with pytest.raises(UserError, match=r"does not take bytes \(uint8\): normalize"):
        tool(model.eval(), [(images, labels)])


def test_other_failures_of_a_model_are_its_own() -> None:
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        zoo.calibrate(nn.Linear(4, 3), [(torch.zeros(8, 5), torch.arange(8) % 3)])
