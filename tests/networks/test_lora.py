from __future__ import annotations

import pytest
import torch
from torch import nn

from zoo import networks
from zoo.networks.lora import add_lora, lora_rank, merge_lora, merged_state

VIT = {"image_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
LANGUAGE = {"vocab_size": 11, "context_length": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}


def cases() -> list[tuple[nn.Module, torch.Tensor]]:
    torch.manual_seed(0)
    return [
        (networks.ViT(3, 3, **VIT), torch.randn(2, 3, 16, 16)),
        (networks.Transformer(**LANGUAGE), torch.arange(16).view(2, 8) % 11),
    ]


def test_adapted_layers_start_as_they_were_and_merge_into_plain_ones() -> None:
    for network, inputs in cases():
        network.eval()
        names = set(network.state_dict())
        with torch.no_grad():
            before = network(inputs)
            plain = {name: p.clone() for name, p in network.named_parameters()}
            add_lora(network, 4)
            assert lora_rank(network) == 4
            assert torch.equal(network(inputs), before)
            # Only the matrices of low rank, and the head, are trained.
            trained = {name for name, p in network.named_parameters() if p.requires_grad}
            assert trained
            assert all("lora_" in name or name.startswith("head.") for name in trained)
            for name, parameter in network.named_parameters():
                if "lora_B" in name:
                    parameter.normal_()
            adapted = network(inputs)
            assert (adapted - before).abs().max() > 0.1
            state = merged_state(network.state_dict())
            merge_lora(network)
        assert set(network.state_dict()) == set(state) == names
        assert lora_rank(network) is None
        with torch.no_grad():
            torch.testing.assert_close(network(inputs), adapted, rtol=1e-4, atol=1e-5)
        for name, tensor in network.state_dict().items():
            torch.testing.assert_close(tensor, state[name])
        moved = {n for n, p in network.named_parameters() if not torch.equal(p, plain[n])}
        assert moved
        assert all(name.startswith("blocks.") for name in moved)
        assert type(network.blocks[0].attn.proj) is nn.Linear


def test_a_network_without_linear_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="ResNet has none except its classifier"):
        add_lora(networks.ResNet(3, 3, layers=(1,), width=4, stem="small"), 4)
    with pytest.raises(ValueError, match="lora_rank is 0"):
        add_lora(networks.ViT(3, 3, **VIT), 0)
