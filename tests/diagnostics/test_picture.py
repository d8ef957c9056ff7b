from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from zoo.diagnostics.picture import draw_audit, layers_in_order, measure_repair
from zoo.diagnostics.trace.recorder import record
from zoo.errors import UserError


class Functional(nn.Module):
    """Dropout and BatchNorm by functions; the buffers are the module's own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 2)
        self.register_buffer("running_mean", torch.zeros(6))
        self.register_buffer("running_var", torch.ones(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.dropout(self.first(x), 0.5, self.training)
        x = F.batch_norm(x, self.running_mean, self.running_var, training=self.training)
        return self.last(x)


def model_at_fault() -> nn.Sequential:
    return nn.Sequential(nn.Dropout(0.2), nn.BatchNorm1d(6), nn.Linear(6, 4), nn.BatchNorm1d(4))


def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [2 + torch.randn(2000, 6, generator=generator) for _ in range(4)]


def test_layers_are_in_the_order_in_which_they_run() -> None:
    nodes = record(Functional(), (torch.randn(4, 6),), mode="training").nodes
    found = [(layer.kind, layer.module) for layer in layers_in_order(nodes)]
    assert found == [("layer", "first"), ("dropout", ""), ("norm", ""), ("layer", "last")]


def test_statistics_of_training_mode_are_repaired_and_the_model_is_untouched() -> None:
    model = model_at_fault().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    repair = measure_repair(model, batches(), learn=True)
    first = repair.before.layers[0]
    # Dropout of rate p at mean 2 and variance 1: the variance is 1 + p / (1 - p) · (1 + 2²).
    assert first.running_ratio == pytest.approx(1 + 0.25 * 5, rel=0.03)
    assert [s.running_ratio for s in repair.after.layers] == pytest.approx([1, 1], abs=0.005)
    assert not model.training
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


def test_statistics_that_the_weights_hold_are_taken_as_they_are() -> None:
    model = model_at_fault()
    with torch.no_grad():
        model[1].running_mean.fill_(2)
        model[1].running_var.fill_(3)
    ratios = [
        layer.running_ratio for layer in measure_repair(model, batches(), learn=False).before.layers
    ]
    assert ratios[0] == pytest.approx(3, rel=0.03)


def test_the_picture_shows_the_layers_and_is_written_whole(tmp_path: Path) -> None:
    model, data = model_at_fault(), batches()
    repair = measure_repair(model, data, learn=True)
    picture = tmp_path / "audit.png"
    draw_audit(model, (data[0],), ["1"], repair, picture, title="two layers", measured="On noise.")
    assert Image.open(picture).size == (1200, 552)
    # The color of what is at fault is there, and is not where nothing is.
    orange = (0xD5, 0x5E, 0x00)
    assert orange in Image.open(picture).convert("RGB").getdata()
    draw_audit(model, (data[0],), [], repair, picture, title="two layers", measured="On noise.")
    assert orange not in Image.open(picture).convert("RGB").getdata()


def test_without_batch_norm_there_is_nothing_to_draw(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(6, 2))
    with pytest.raises(UserError, match="no BatchNorm"):
        measure_repair(model, batches(), learn=True)
