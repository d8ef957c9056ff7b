from __future__ import annotations

import math

import pytest
import timm
import torch
from timm.models._efficientnet_blocks import EdgeResidual
from torch import nn

from tests.networks.test_resnet import randomized
from zoo import networks, recipes
from zoo.networks import EfficientNet
from zoo.networks.efficientnet import FusedMBConv, MBConv, Separable, round_channels


@pytest.mark.parametrize("number", range(5))
def test_same_parameter_names_and_shapes_as_timm(number: int) -> None:
    name = f"efficientnet_b{number}"
    with torch.device("meta"):
        ours = getattr(networks, name)().state_dict()
        theirs = timm.create_model(name).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


@pytest.mark.parametrize("name", ["efficientnet_b0", "efficientnet_b2"])
def test_weights_load_strictly_and_give_the_same_logits(name: str) -> None:
    torch.manual_seed(0)
    theirs = randomized(timm.create_model(name))
    ours = getattr(networks, name)().eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("channels", "stride"), [(16, 1), (24, 2)])
def test_a_fused_block_loads_timms_strictly_and_gives_the_same(channels: int, stride: int) -> None:
    torch.manual_seed(0)
    theirs = randomized(
        EdgeResidual(16, channels, 3, stride, exp_ratio=4, act_layer=nn.SiLU, pad_type="")
    )
    ours = FusedMBConv(16, channels, 3, stride, 4, 0.0).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.randn(2, 16, 9, 9)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))


def test_round_channels() -> None:
    assert [round_channels(c) for c in (1, 8, 12, 19, 28.8, 44.8)] == [8, 8, 16, 24, 32, 48]


def test_the_first_stages_are_fused_and_no_others() -> None:
    network = EfficientNet(5, 1, [[2, 8, 2, 3, 1], [1, 8, 1, 3, 1], [4, 16, 2, 3, 2]], fused=1)
    kinds = [{type(block) for block in stage} for stage in network.blocks]
    assert kinds == [{FusedMBConv}, {Separable}, {MBConv}]


def test_stochastic_depth_grows_linearly_from_zero() -> None:
    network = EfficientNet(drop_path_rate=0.32)
    rates = [m.drop_path.drop_prob for m in network.modules() if isinstance(m, Separable | MBConv)]
    assert len(rates) == 16
    assert rates == pytest.approx([0.02 * index for index in range(16)])


def test_the_only_dropout_of_units_stands_behind_the_last_batchnorm() -> None:
    network = EfficientNet(num_classes=5, drop_path_rate=0.0).train()
    order: list[nn.Module] = []
    for module in network.modules():
        if isinstance(module, nn.Dropout | nn.BatchNorm2d | nn.Linear):
            module.register_forward_hook(lambda m, *_: order.append(m))
    network(torch.randn(2, 3, 64, 64))
    assert isinstance(order[-2], nn.Dropout)
    assert order[-1] is network.classifier
    assert all(isinstance(module, nn.BatchNorm2d) for module in order[:-2])


def test_depthwise_filters_are_initialized_for_their_own_fan() -> None:
    torch.manual_seed(0)
    network = EfficientNet(width=4.0)
    filters = [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.groups > 500]
    assert filters
    for module in filters:
        fan_out = math.prod(module.kernel_size)
        assert module.weight.var().item() == pytest.approx(2 / fan_out, rel=0.1)


def test_the_small_preset_is_the_recipes() -> None:
    recipe = recipes.resolve("efficientnet_fmnist")["model"]["init_args"]["network"]["init_args"]
    assert networks.efficientnet_small().config == EfficientNet(**recipe).config


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stages": [[1, 2, 3]]}, "each is five numbers"),
        ({"stages": []}, "each is five numbers"),
        ({"stages": [[4, 8, 2, 4, 1]]}, "a kernel of 4 has no middle"),
        ({"stem_stride": 0}, "stem_stride is 0"),
        ({"depth": 0}, "above 0"),
        ({"fused": 8}, "fused is 8: of stages, give 0 to 7"),
        ({"drop_rate": 1.5}, "drop_rate is 1.5"),
        ({"drop_path_rate": -1}, "drop_path_rate is -1"),
        ({"in_channels": 0}, "at least 1"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EfficientNet(**arguments)
