from __future__ import annotations

import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from zoo import networks
from zoo.diagnostics.trace.recorder import record
from zoo.networks import ViT, fast
from zoo.networks.vit import Attention, ConvEmbed

SMALL = {"image_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_224"])
def test_weights_load_strictly_and_give_the_same_logits(name: str) -> None:
    torch.manual_seed(0)
    theirs = timm.create_model(name).eval()
    for parameter in theirs.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    ours = getattr(networks, name)().eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-4)


class _Operations(TorchDispatchMode):
    """Writes down every operation, and type, shape and strides of what comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        outputs = result if isinstance(result, (list, tuple)) else [result]
        tensors = [x for x in outputs if isinstance(x, torch.Tensor)]
        self.seen.append((str(function), [(x.dtype, x.shape, x.stride()) for x in tensors]))
        return result


@pytest.mark.parametrize("drop_path_rate", [0.0, 0.1])
def test_off_the_cpu_a_training_step_is_timms_operation_by_operation(
    drop_path_rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(network: nn.Module) -> list[tuple]:
        with _Operations() as operations:
            with torch.autocast("cpu", torch.bfloat16):
                loss = network.train()(torch.randn(2, 3, 32, 32)).float().mean()
            loss.backward()
        return operations.seen

    monkeypatch.setattr(fast, "on_cpu", lambda x: False)
    name, settings = "vit_small_patch16_224", {"drop_path_rate": drop_path_rate}
    theirs = step(timm.create_model(name, img_size=32, **settings))
    assert any(dtype == torch.bfloat16 for _, outputs in theirs for dtype, *_ in outputs)
    assert step(getattr(networks, name)(image_size=32, **settings)) == theirs


@pytest.mark.parametrize("pool", ["token", "avg"])
@pytest.mark.parametrize("stem", ["patch", "conv"])
def test_another_resolution_interpolates_the_positions(pool: str, stem: str) -> None:
    network = ViT(5, 1, **SMALL, global_pool=pool, stem=stem).eval()
    assert network(torch.zeros(2, 1, 24, 32)).shape == (2, 5)
    # Positions that are the same everywhere stay so, whatever the size.
    nn.init.constant_(network.pos_embed, 0.7)
    torch.testing.assert_close(
        network._positions(6, 8), torch.full((1, 48 + (pool == "token"), 16), 0.7)
    )
    # Others as timm resizes them, height and width each its own.
    nn.init.normal_(network.pos_embed)
    expected = resample_abs_pos_embed(
        network.pos_embed, [6, 8], num_prefix_tokens=int(pool == "token"), antialias=True
    )
    torch.testing.assert_close(network._positions(6, 8), expected)
    with pytest.raises(ValueError, match="no whole patches of 4"):
        network(torch.zeros(2, 1, 18, 16))


@pytest.mark.parametrize(
    "place", ["drop_rate", "pos_drop_rate", "attn_drop_rate", "proj_drop_rate", "mlp_drop_rate"]
)
def test_each_drop_rate_acts_by_itself_and_in_training_only(place: str) -> None:
    torch.manual_seed(0)
    network = ViT(5, 1, **SMALL, **{place: 0.5})
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    images = torch.randn(2, 1, 16, 16)
    network.train()
    assert not torch.equal(network(images), network(images))
    network.eval()
    assert torch.equal(network(images), network(images))


def test_each_rate_stands_where_it_belongs() -> None:
    rates = {
        "head_drop": ("drop_rate", 0.1),
        "pos_drop": ("pos_drop_rate", 0.2),
        "blocks.1.attn": ("attn_drop_rate", 0.25),
        "blocks.1.attn.proj_drop": ("proj_drop_rate", 0.3),
        "blocks.1.mlp.drop1": ("mlp_drop_rate", 0.4),
        "blocks.1.mlp.drop2": ("mlp_drop_rate", 0.4),
        "blocks.1.drop_path": ("drop_path_rate", 0.5),
    }
    network = ViT(5, 1, **SMALL, **dict(rates.values()))
    trace = record(network, (torch.randn(2, 1, 16, 16),), mode="training")
    found = {n.module: n.dropout.rate for n in trace.dropouts if "blocks.0" not in n.module}
    assert found == pytest.approx({module: rate for module, (_, rate) in rates.items()})


def test_every_branch_begins_with_its_norm() -> None:
    network = ViT(5, 1, **SMALL).eval()
    order: list[str] = []
    for name, module in network.named_modules():
        if isinstance(module, nn.LayerNorm | nn.Linear):
            module.register_forward_hook(lambda *_, name=name: order.append(name))
    network(torch.zeros(1, 1, 16, 16))
    block = ["norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"]
    expected = [f"blocks.{i}.{name}" for i in range(2) for name in block]
    assert order == [*expected, "norm", "head"]


def test_initialization_is_n_002_with_zero_biases() -> None:
    torch.manual_seed(0)
    network = networks.vit_tiny_patch16_224()
    for module in network.modules():
        if isinstance(module, nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.05)
            assert not module.bias.any()


def test_activations_and_gradients_survive_fifty_blocks() -> None:
    torch.manual_seed(0)
    network = ViT(10, 1, 16, 4, embed_dim=64, depth=50, num_heads=4, drop_path_rate=0.0)
    logits = network(torch.randn(16, 1, 16, 16))
    nn.functional.cross_entropy(logits, torch.arange(16) % 10).backward()
    norms = [block.attn.qkv.weight.grad.norm().item() for block in network.blocks]
    assert max(norms) / min(norms) < 100
    assert min(norms) > 1e-5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 30}, "not a multiple of patch_size 16"),
        ({"num_heads": 5}, "not a multiple of num_heads 5"),
        ({"norm": "batchnorm"}, "choose layernorm or rmsnorm"),
        ({"global_pool": "max"}, "choose token or avg"),
        ({"stem": "big"}, "choose patch or conv"),
        ({"stem": "conv", "patch_size": 14}, "a conv stem needs a power of two"),
        ({"stem": "conv", "stem_stages": [[8, 1, 2]]}, "make no patch_size of 16"),
        ({"stem": "conv", "patch_size": 2, "stem_stages": [[8]]}, "channels, residual pairs"),
        ({"stem": "conv", "patch_size": 2, "stem_stages": [[0, 1, 2]]}, "channels, residual pairs"),
        ({"stem": "conv", "patch_size": 4, "stem_stages": [[8, 1, 4]]}, "a stride of 1 or 2"),
        ({"stem_stages": [[8, 1, 2]]}, "belongs to stem: conv"),
        ({"num_heads": 0}, "num_heads is 0"),
        ({"patch_size": 0}, "patch_size is 0"),
        ({"attn_drop_rate": 1.0}, "attn_drop_rate is 1.0"),
        ({"depth": 0}, "at least 1"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ViT(**arguments)


@pytest.mark.parametrize("rate", [0.1, 0.3])
def test_attention_drops_its_rate_of_the_weights_and_keeps_the_expectation(rate) -> None:
    """All weights are 1/T and all values 1: a query's output is the share kept, over 1 - rate."""
    torch.manual_seed(0)
    tokens = 16
    attention = Attention(8, 2, attn_drop=rate, proj_drop=0.0).train()
    nn.init.zeros_(attention.qkv.weight)
    nn.init.ones_(attention.qkv.bias)
    nn.init.eye_(attention.proj.weight)
    nn.init.zeros_(attention.proj.bias)
    with torch.no_grad():
        kept = attention(torch.randn(2000, tokens, 8))[..., [0, 4]]  # one value of each head
    variance = rate / (1 - rate) / tokens
    assert kept.mean().item() == pytest.approx(1, abs=5 * (variance / kept.numel()) ** 0.5)
    assert kept.var().item() == pytest.approx(variance, rel=0.05)
    attention.eval()
    assert torch.equal(attention(torch.randn(2, tokens, 8)), torch.ones(2, tokens, 8))


def test_a_conv_stem_has_the_stages_it_is_given() -> None:
    stem = ConvEmbed(1, dim=24, patch_size=4, stages=[[4, 1, 1], [6, 2, 2], [10, 0, 2]])
    convolutions = [m for m in stem.modules() if isinstance(m, nn.Conv2d)]
    assert [(m.in_channels, m.out_channels, m.stride[0]) for m in convolutions] == [
        (1, 4, 1),
        *[(4, 4, 1)] * 2,
        (4, 6, 2),
        *[(6, 6, 1)] * 4,
        (6, 10, 2),
        (10, 24, 1),
    ]
    assert stem(torch.randn(2, 1, 16, 16)).shape == (2, 24, 4, 4)
