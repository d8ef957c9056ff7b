from __future__ import annotations

import json

import timm
import torch
from torch import nn

from zoo.commands.info import describe


def test_multiply_adds_and_memory_are_those_counted_by_hand() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.25),
        nn.Linear(8 * 16, 5),
    ).eval()
    facts = describe(network, torch.zeros(1, 3, 4, 4), batch_size=2)
    assert facts["multiply_adds"] == 4 * 4 * 8 * 3 * 9 + 8 * 16 * 5
    assert facts["parameters"] == 8 * 3 * 9 + 16 + 8 * 16 * 5 + 5
    assert [(one["kind"], one["module"]) for one in facts["regularization"]] == [
        ("BatchNorm", "1"),
        ("element-wise dropout", "4"),
    ]
    assert facts["regularization"][1]["rate"] == 0.25
    assert facts["throughput"]["inputs_per_second"] > 0


def test_timm_states_the_same_multiply_adds(zoo_cli) -> None:
    result = zoo_cli("info", "timm:resnet18", "--json", "--batch_size", "1")
    assert result.code == 0, result.err
    facts = json.loads(result.out)
    assert facts["parameters"] == sum(p.numel() for p in timm.create_model("resnet18").parameters())
    assert round(facts["multiply_adds"] / 1e9, 1) == 1.8  # He et al. 2016, table 1
    assert facts["input"] == [[1, 3, 224, 224]]


def test_weights_and_recipes_of_every_kind_are_shown(zoo_cli) -> None:
    for source, expected in (
        ("convnet_fmnist", "spatial dropout"),
        ("vit_digits", "layer_norm"),
        ("transformer_shakespeare", "rms_norm"),
        ("gan_digits", "BatchNorm"),
        ("gan_fmnist", "BatchNorm"),  # whose weights do not say what their latents are
    ):
        result = zoo_cli("info", source, "--batch_size", "1")
        assert result.code == 0, result.err
        assert expected in result.out, result.out
        assert "multiply-adds" in result.out
    assert zoo_cli("info", "resnet_fmnits").code == 2
