from __future__ import annotations

import pytest
import torch

import zoo
from zoo.networks import UNet


def test_every_pixel_has_its_logits_and_the_size_is_the_papers() -> None:
    network = UNet(2, 1, width=8, depth=2).eval()
    assert network(torch.zeros(2, 1, 16, 24)).shape == (2, 2, 16, 24)
    with pytest.raises(ValueError, match="an image of 18 × 16: both must be multiples of 4"):
        network(torch.zeros(1, 1, 18, 16))
    with torch.device("meta"):
        parameters = sum(p.numel() for p in UNet(2, 1).parameters())
    assert parameters == pytest.approx(31.0e6, rel=0.01)  # Ronneberger et al. 2015


def test_details_reach_the_output_past_the_bottom() -> None:
    torch.manual_seed(0)
    network = UNet(2, 1, width=8, depth=2).eval()
    image = torch.zeros(1, 1, 16, 16)
    image[0, 0, 5, 9] = 1
    change = (network(image) - network(torch.zeros(1, 1, 16, 16))).abs().sum(1)[0]
    row, column = divmod(int(change.argmax()), 16)
    assert abs(row - 5) <= 1
    assert abs(column - 9) <= 1


@pytest.mark.parametrize(("norm", "clean"), [("group", True), ("batch", False)])
def test_dropout_at_the_bottom_wants_groupnorm_above_it(norm: str, clean: bool) -> None:
    network = UNet(2, 1, width=8, depth=2, norm=norm, drop_rate=0.3)
    report = zoo.audit(network, torch.randn(4, 1, 16, 16))
    assert {f.rule for f in report.at_least("warning")} == (
        set() if clean else {"dropout-before-bn"}
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"norm": "layer"}, "choose group or batch"),
        ({"width": 12}, "multiple of 8"),
        ({"depth": 0}, "at least 1"),
        ({"drop_rate": 1.0}, "drop_rate is 1.0"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNet(**arguments)
