from __future__ import annotations

import pytest
import torch
from torch import nn

from zoo.networks.initializers import DRAWS, init_orthogonal, init_weights


def test_orthogonal_weights_keep_lengths_and_biases_are_zero_in_every_way() -> None:
    layer = nn.Linear(16, 16)
    init_weights(layer, "orthogonal")
    torch.testing.assert_close(layer.weight @ layer.weight.T, torch.eye(16), atol=1e-5, rtol=0)
    for kind in DRAWS:
        layer = nn.Linear(16, 16)
        init_weights(layer, kind)
        assert not layer.bias.any()


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_start_orthogonal(kind) -> None:
    recurrent = kind(8, 16, num_layers=2)
    init_orthogonal(recurrent)
    for name, parameter in recurrent.named_parameters():
        for index, gate in enumerate(parameter.split(16)):
            if "weight_hh" in name:
                torch.testing.assert_close(gate @ gate.T, torch.eye(16), atol=1e-5, rtol=0)
            elif "bias" in name:
                forget = kind is nn.LSTM and name.startswith("bias_ih") and index == 1
                assert torch.equal(gate, torch.full((16,), float(forget)))
            else:
                inputs = gate.shape[1]
                assert gate.var().item() == pytest.approx(2 / (inputs + 16), rel=0.6)
