from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from zoo.core.devices import lacks_bf16, several_gpus


@pytest.mark.parametrize(
    ("settings", "gpus", "expected"),
    [
        ({}, 0, False),
        ({}, 1, False),
        ({}, 2, True),
        ({"devices": 1}, 2, False),
        ({"devices": "2"}, 4, True),
        ({"devices": "0,"}, 4, False),
        ({"devices": [0, 1]}, 4, True),
        ({"devices": 1, "num_nodes": 2}, 1, True),
        ({"accelerator": "cpu", "devices": 2}, 2, False),
    ],
)
def test_batchnorm_is_synced_over_several_gpus_only(monkeypatch, settings, gpus, expected) -> None:
    cuda = SimpleNamespace(is_available=lambda: gpus > 0, device_count=lambda: gpus)
    monkeypatch.setattr("zoo.core.devices.torch", SimpleNamespace(cuda=cuda))
    assert several_gpus(settings) is expected


@pytest.mark.parametrize(
    ("settings", "gpu", "mps", "processor", "expected"),
    [
        ({}, None, False, True, False),
        ({}, None, False, False, True),
        ({"accelerator": "cpu"}, None, False, False, True),
        ({}, True, False, False, False),
        ({}, False, False, True, True),
        ({"accelerator": "gpu", "devices": 2}, False, False, True, True),
        ({"accelerator": "cpu"}, False, False, True, False),
        ({}, None, True, False, False),
        ({"accelerator": "mps"}, None, True, False, False),
    ],
)
def test_bfloat16_is_asked_of_the_device_that_will_run(
    monkeypatch, settings, gpu, mps, processor, expected
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu is not None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: gpu)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: processor)
    assert lacks_bf16(settings) is expected
