"""The audit against the seed, on architectures that no other test uses.

The list takes one small member of each family. Not tried: families whose smallest member is large
(timm's nasnetalarge and pnasnet5large), and those that fix an image size other than 96 or 224.
"""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from zoo.diagnostics.audit import audit
from zoo.diagnostics.trace.graph import reach
from zoo.diagnostics.trace.recorder import record
from zoo.study.seed_oracle import changed_by_the_seed

# Every block must drop something now and then; a model takes the first that it knows.
RATES = [{"drop_rate": 0.3, "drop_path_rate": 0.8}, {"drop_rate": 0.3}, {}]
TIMM = """resnet26d resnext26ts seresnet33ts ecaresnet26t skresnet18 gcresnet33ts res2net50_14w_8s
resnest14d selecsls42 hrnet_w18_small tf_efficientnet_b0 tinynet_e mobilenetv2_050
mobilenetv4_conv_small lcnet_050 mnasnet_small spnasnet_100 fbnetc_100 mixnet_s hardcorenas_a
semnasnet_075 ghostnetv2_100 regnetx_002 regnetz_005 repvit_m0_9 repghostnet_050 edgenext_xx_small
efficientformer_l1 efficientformerv2_s0 efficientvit_b0 efficientvit_m0 mobileone_s0
mobilevitv2_050 cs3darknet_s cspdarknet53 darknet17 ese_vovnet19b_slim inception_v4 xception41
dpn48b dla46_c densenetblur121d visformer_tiny pvt_v2_b0 tiny_vit_5m_224 tresnet_m fasternet_t0
starnet_s1 hgnet_tiny hgnetv2_b0 levit_conv_128s convmixer_768_32 nextvit_small
swiftformer_xs resnetrs50""".split()
TORCHVISION = """mobilenet_v3_large mnasnet1_0 shufflenet_v2_x1_0 mnasnet0_75 densenet169
regnet_x_400mf maxvit_t efficientnet_v2_s""".split()
LARGE = (
    "_224 levit tiny_vit swiftformer efficientformer visformer pvt efficientvit_m maxvit".split()
)


def build(library: str, name: str) -> nn.Module:
    torch.manual_seed(0)
    if library == "torchvision":
        rates = {
            "efficientnet_v2_s": {"stochastic_depth_prob": 0.8},
            "densenet169": {"drop_rate": 0.2},
        }
        return torchvision.models.get_model_builder(name)(**rates.get(name, {}))
    for rates in RATES:
        try:
            return timm.create_model(name, **rates)
        except TypeError:
            continue
    raise AssertionError(name)


MODELS = [("timm", name) for name in TIMM] + [("torchvision", name) for name in TORCHVISION]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("library", "name"), MODELS)
def test_what_is_reported_is_what_the_seed_changes(library: str, name: str) -> None:
    model = build(library, name)
    size = 224 if any(part in name for part in LARGE) else 96
    x = torch.randn(3, 3, size, size)
    trace = record(model, (x,), mode="training")
    reached = reach(trace.nodes)
    depends = {
        node.module
        for node in trace.batch_norms
        if any(reached[parent.index] for parent in node.inputs)
    }
    rules = ["dropout-before-bn", "stochastic-depth-before-bn"]
    reported = {finding.module for finding in audit(model, x, rules=rules).findings}
    changed, ran = changed_by_the_seed(model, x, depends)
    assert {node.module for node in trace.batch_norms} == ran
    assert depends == changed
    near, _ = changed_by_the_seed(model, x, reported, replay=True)
    assert reported == near


def test_sixty_models_stand_against_the_oracle() -> None:
    assert len(set(MODELS)) >= 60


class Chain(nn.Module):
    """Dropout, then two BatchNorms, one after the other, and one on a branch of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.own = (nn.BatchNorm1d(8) for _ in range(3))
        self.linear = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.first(self.linear(F.dropout(x, 0.5, self.training)))
        return self.second(self.linear(hidden)) + self.own(x)


def test_the_oracle_tells_what_passes_through_a_normalization() -> None:
    x = torch.randn(6, 8)
    assert changed_by_the_seed(Chain(), x, {"first", "second"})[0] == {"first", "second"}
    assert changed_by_the_seed(Chain(), x, {"first"}, replay=True)[0] == {"first"}
    assert changed_by_the_seed(Chain(), x, set())[1] == {"first", "second", "own"}
    found = audit(Chain(), x, rules=["dropout-before-bn"]).findings
    assert [finding.module for finding in found] == ["first"]
