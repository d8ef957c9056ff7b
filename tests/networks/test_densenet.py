from __future__ import annotations

import pytest
import torch
import torchvision

import zoo
from tests.networks.test_resnet import randomized
from zoo import networks
from zoo.networks import DenseNet


@pytest.mark.parametrize("size", [64, 200])
def test_torchvisions_weights_load_strictly_and_give_the_same_logits(size: int) -> None:
    torch.manual_seed(0)
    theirs = randomized(torchvision.models.densenet121())
    for name, tensor in theirs.state_dict().items():
        if "norm" in name and tensor.is_floating_point():
            tensor.copy_(0.5 + torch.rand_like(tensor))
    ours = networks.densenet121().eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    # At 200 the maps have odd sides on their way.
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-4)


def test_its_dropout_is_warned_of() -> None:
    x = torch.randn(4, 1, 12, 12)
    args = {"in_channels": 1, "layers": (2, 2), "growth": 4, "stem_channels": 8, "stem": "small"}
    assert not zoo.audit(DenseNet(5, **args), x).at_least("warning")
    found = zoo.audit(DenseNet(5, **args, drop_rate=0.2), x).at_least("warning")
    assert {finding.rule for finding in found} == {"dropout-before-bn"}
    assert {finding.severity for finding in found} == {"warning"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stem": "pool"}, "choose small or imagenet"),
        ({"layers": ()}, "at least one layer"),
        ({"growth": 0}, "at least 1"),
        ({"drop_rate": 1}, "drop_rate is 1"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DenseNet(**arguments)
