from __future__ import annotations

import copy
import json
import random
from collections import UserDict
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

import zoo
from zoo.diagnostics.audit import audit
from zoo.diagnostics.trace.graph import MERGED, STRAIGHT, reach
from zoo.diagnostics.trace.recorder import record
from zoo.study.seed_oracle import changed_by_the_seed

# -- against ground truth --------------------------------------------------------------------------

HIGH = {"drop_rate": 0.3, "drop_path_rate": 0.8}  # every block must drop something now and then
TORCHVISION: dict[str, dict[str, Any]] = {
    "resnet18": {},
    "resnet50": {},
    "wide_resnet50_2": {},
    "densenet121": {},
    "densenet121 ": {"drop_rate": 0.2},
    "efficientnet_b0": {"stochastic_depth_prob": 0.8},
    "mobilenet_v2": {},
    "mobilenet_v3_small": {},
    "mnasnet0_5": {},
    "regnet_y_400mf": {},
    "shufflenet_v2_x0_5": {},
    "vgg11_bn": {},
    "googlenet": {"init_weights": False},
    "convnext_tiny": {},
    "swin_t": {"dropout": 0.1, "attention_dropout": 0.1},
    "deeplabv3_resnet50": {"weights": None, "weights_backbone": None},
    "fcn_resnet50": {"weights": None, "weights_backbone": None, "aux_loss": True},
    "lraspp_mobilenet_v3_large": {"weights": None, "weights_backbone": None},
}
TIMM: dict[str, dict[str, Any]] = {
    "resnet18": {},
    "resnet18 ": HIGH,
    "resnet18  ": {"drop_block_rate": 0.2},
    "legacy_seresnet18": {"drop_rate": 0.3},
    "densenet121": {"drop_rate": 0.3},
    "densenet121 ": {"proj_drop_rate": 0.3},
    "efficientnet_b0": HIGH,
    "mobilenetv3_small_050": HIGH,
    "regnety_002": HIGH,
    "vit_tiny_patch16_224": {"drop_rate": 0.1, "attn_drop_rate": 0.1, "patch_drop_rate": 0.25},
    "levit_128s": HIGH,
    "xcit_nano_12_p16_224": HIGH,
    "nf_resnet26": HIGH,
    "resnetv2_50": HIGH,
    "ghostnet_050": {"drop_rate": 0.2},
    "cspresnet50": HIGH,
    "dla34": {"drop_rate": 0.2},
    "repvgg_a0": HIGH,
    "mobilevit_xxs": HIGH,
    "rexnet_100": HIGH,
    "fastvit_t8": HIGH,
}
MODELS = [("torchvision", name, args) for name, args in TORCHVISION.items()] + [
    ("timm", name, args) for name, args in TIMM.items()
]


def make(library: str, name: str, args: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    if library == "timm":
        return timm.create_model(name.strip(), **args)
    return torchvision.models.get_model_builder(name.strip())(**args)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("library", "name", "args"), MODELS, ids=[f"{lib}-{name.strip()}" for lib, name, _ in MODELS]
)
def test_a_batchnorm_depends_on_a_dropout_if_and_only_if_the_seed_changes_its_input(
    library, name, args
) -> None:
    model = make(library, name, args)
    size = 224 if "224" in name or name == "levit_128s" else 64
    x = torch.randn(4, 3, size, size)
    trace = record(model, (x,), mode="training")
    reached = reach(trace.nodes)
    levels: dict[str, int] = {}
    for node in trace.batch_norms:
        for parent in node.inputs:
            for level in reached[parent.index].values():
                levels[node.module] = min(level, levels.get(node.module, level))
    changed, ran = changed_by_the_seed(model, x, set(levels))
    assert {node.module for node in trace.batch_norms} == ran
    assert set(levels) == changed
    # What is reported is what is near, whatever the severity.
    near = {module for module, level in levels.items() if level in (STRAIGHT, MERGED)}
    rules = ["dropout-before-bn", "stochastic-depth-before-bn"]
    report = audit(model, x, rules=rules)
    assert {finding.module for finding in report.findings} == near
    assert report.audited, report.unaudited


def test_enough_models_stand_against_the_oracle() -> None:
    assert len(MODELS) >= 30


# -- known models ----------------------------------------------------------------------------------


def test_torchvision_densenet_with_a_drop_rate() -> None:
    model = torchvision.models.densenet121(drop_rate=0.2)
    report = audit(model, torch.randn(2, 3, 64, 64), rules=["dropout-before-bn"])
    assert len(report.findings) == 58
    assert {finding.severity for finding in report.findings} == {"warning"}
    last = next(f for f in report.findings if f.module == "features.norm5")
    assert last.origin == "features.denseblock4.denselayer16"
    assert last.path == ("cat",)
    assert "torchvision" in last.source
    assert "densenet.py:" in last.source


def test_torchvision_deeplab() -> None:
    model = torchvision.models.segmentation.deeplabv3_resnet50(weights=None, weights_backbone=None)
    report = audit(model, torch.randn(2, 3, 64, 64), rules=["dropout-before-bn"])
    (finding,) = report.findings
    assert (finding.severity, finding.module) == ("error", "classifier.2")
    assert finding.origin == "classifier.0.project.3"
    assert finding.path == ("conv2d",)
    assert not report.ok


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("resnet50", {}),
        ("efficientnet_b0", {}),
        ("vit_b_32", {"dropout": 0.1, "attention_dropout": 0.1}),
        ("convnext_tiny", {}),
    ],
)
def test_known_clean_models(name, args) -> None:
    model = torchvision.models.get_model_builder(name)(**args)
    report = audit(model, torch.randn(2, 3, 224, 224))
    assert report.ok
    assert not report.at_least("warning"), str(report)


# -- a model comes out as it went in ---------------------------------------------------------------


class Meddler(nn.Module):
    """Changes all that a forward can change."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.norm = nn.BatchNorm1d(8)
        self.drop = nn.Dropout(0.5)
        self.spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8))
        self.calls, self.kept = 0, [1]
        self.register_buffer("average", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.kept.append(self.calls)
        self.last = x
        self.average = 0.9 * self.average + 0.1 * x.mean()
        with torch.no_grad():
            self.linear.weight.mul_(1.01)
            self.linear.bias.data.add_(1)
        return self.drop(self.norm(self.spectral(self.linear(x))))


@pytest.mark.parametrize("training", [True, False])
def test_the_model_and_the_random_state_come_out_untouched(training) -> None:
    torch.manual_seed(0)
    model = Meddler().train(training)
    model.norm.eval()
    model.linear.weight.grad = torch.ones_like(model.linear.weight)
    seen = []
    model.drop.register_forward_hook(lambda *_: seen.append(1))
    before = copy.deepcopy(model.state_dict())
    modes = {name: module.training for name, module in model.named_modules()}
    parameters, state = list(model.parameters()), torch.get_rng_state()
    attributes = set(vars(model))
    audit(model, torch.randn(4, 8, generator=torch.Generator().manual_seed(0)))
    assert seen  # the user's own hooks run, and stay
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert torch.equal(model.linear.weight.grad, torch.ones(8, 8))
    assert (model.calls, model.kept, set(vars(model))) == (0, [1], attributes)
    assert len(model.drop._forward_hooks) == 1
    assert not nn.modules.module._global_forward_hooks
    assert not nn.modules.module._global_forward_pre_hooks


def test_a_model_that_fails_comes_out_untouched_too() -> None:
    class Failing(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            super().forward(x)
            raise RuntimeError("on\npurpose")

    model = Failing(nn.Linear(4, 4), nn.BatchNorm1d(4)).train()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(zoo.UserError, match=r"does not run on these inputs: RuntimeError: on$"):
        audit(model, torch.randn(3, 4))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert not nn.modules.module._global_forward_hooks


# -- what is seen ----------------------------------------------------------------------------------


def findings(model: nn.Module, *inputs: Any, **options: Any) -> dict[str, list[Any]]:
    grouped: dict[str, list[Any]] = {}
    for finding in audit(model, *inputs, **options).findings:
        grouped.setdefault(finding.rule, []).append(finding)
    return grouped


class Forward(nn.Module):
    """A module whose forward is given."""

    def __init__(self, forward: Any, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        self.body = forward

    def forward(self, *inputs: Any) -> Any:
        return self.body(self, *inputs)


def gaussian(self: Any, x: torch.Tensor) -> torch.Tensor:
    noise = 1 + 0.5 * torch.randn_like(x) if self.training else 1.0
    return self.norm(self.linear(x * noise))


def by_hand(self: Any, x: torch.Tensor) -> torch.Tensor:
    if self.training:
        x = x * (torch.rand_like(x) < 0.7) / 0.7
    return self.norm(self.linear(x))


def in_place(self: Any, x: torch.Tensor) -> torch.Tensor:
    h = self.linear(x)
    half = h[:, :4]
    F.dropout(half, 0.5, self.training, inplace=True)
    return self.norm(h)


def through_a_view(self: Any, x: torch.Tensor) -> torch.Tensor:
    h = self.linear(x)
    view = h.view(-1, 2, 4)
    F.dropout(h, 0.5, self.training, inplace=True)
    return self.norm(view.flatten(1))


def mask_reused(self: Any, x: torch.Tensor) -> torch.Tensor:
    mask = F.dropout(torch.ones_like(x), 0.4, self.training)
    return self.norm(self.linear(x * mask))


def weights_dropped(self: Any, x: torch.Tensor) -> torch.Tensor:
    return self.norm(F.linear(x, F.dropout(self.linear.weight, 0.3, self.training)))


@pytest.mark.parametrize(
    ("forward", "rate"),
    [
        (gaussian, None),
        (by_hand, 0.3),
        (in_place, 0.5),
        (through_a_view, 0.5),
        (mask_reused, 0.4),
        (weights_dropped, 0.3),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_dropout_that_is_no_module_is_seen(forward, rate) -> None:
    model = Forward(forward, linear=nn.Linear(8, 8), norm=nn.BatchNorm1d(8))
    (finding,) = findings(model, torch.randn(6, 8))["dropout-before-bn"]
    assert (finding.severity, finding.module, finding.origin) == ("error", "norm", "")
    assert f"test_audit.py:{model.body.__code__.co_firstlineno}"[:14] in finding.source
    if rate is not None:
        assert f"rate {rate:g}" in finding.message
    model = Forward(forward, linear=nn.Linear(8, 8), norm=nn.LayerNorm(8))
    assert "dropout-before-bn" not in findings(model, torch.randn(6, 8))


def test_the_line_of_a_notebook_is_told_by_its_cell() -> None:
    scope = {"F": F}
    code = "def forward(self, x):\n    return self.norm(F.dropout(x, 0.3, self.training))\n"
    exec(compile(code, "/tmp/ipykernel_7/12345.py", "exec"), scope)  # as ipykernel names a cell
    report = audit(Forward(scope["forward"], norm=nn.BatchNorm1d(8)), torch.randn(6, 8))
    assert "    at line 2 of a notebook's cell" in str(report).splitlines()
    assert "ipykernel" not in str(report)


class OwnNorm(nn.Module):
    """BatchNorm written out by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(8))
        self.register_buffer("running_var", torch.ones(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, var = self.running_mean, self.running_var
        if self.training:
            mean, var = x.mean(0), x.var(0)
            with torch.no_grad():
                self.running_mean.lerp_(mean, 0.1)
                self.running_var.lerp_(var, 0.1)
        return (x - mean) / (var + 1e-5).sqrt()


def test_batchnorm_that_is_no_batchnorm_module_is_seen() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 8), OwnNorm(), nn.Linear(8, 2))
    (finding,) = findings(model, torch.randn(6, 8))["dropout-before-bn"]
    assert (finding.module, finding.origin) == ("2", "0")


def residual(self: Any, x: torch.Tensor) -> torch.Tensor:
    return self.norm(x + self.drop(self.linear(x)))


def dropped_everywhere(self: Any, x: torch.Tensor) -> torch.Tensor:
    x = self.drop(x)
    return self.norm(x + self.linear(x))


def renormalized(self: Any, x: torch.Tensor) -> torch.Tensor:
    return self.norm(self.linear(self.first(self.drop(x))))


@pytest.mark.parametrize(
    ("forward", "severities"),
    [(residual, ["warning"]), (dropped_everywhere, ["error"]), (renormalized, ["error"])],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_levels(forward, severities) -> None:
    model = Forward(
        forward,
        drop=nn.Dropout(0.2),
        linear=nn.Linear(8, 8),
        first=nn.BatchNorm1d(8),
        norm=nn.BatchNorm1d(8),
    )
    found = findings(model, torch.randn(6, 8))["dropout-before-bn"]
    assert [finding.severity for finding in found] == severities
    if forward is renormalized:  # the second BatchNorm stands behind the first
        assert [finding.module for finding in found] == ["first"]


def test_what_is_no_fault() -> None:
    x = torch.randn(6, 8)
    for norm in (
        nn.BatchNorm1d(8, track_running_stats=False),
        zoo.freeze(nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 2)), keep=("1",)),
    ):
        model = nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 8), norm)
        assert "dropout-before-bn" not in findings(model, x)
    model = nn.Sequential(nn.Dropout(0.0), nn.Linear(8, 8), nn.BatchNorm1d(8))
    assert not findings(model, x, rules=["dropout-before-bn"])

    def standardized_weights(self: Any, x: torch.Tensor) -> torch.Tensor:
        weight = F.batch_norm(self.linear.weight[None], None, None, training=True)[0]
        return F.linear(F.dropout(x, 0.2, self.training), weight)

    assert not findings(
        Forward(standardized_weights, linear=nn.Linear(8, 8)), x, rules=["dropout-before-bn"]
    )


def test_attention_dropout_is_seen_however_it_is_written() -> None:
    x = torch.randn(2, 5, 16)
    encoder = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.2, batch_first=True)
    torchvision_like = nn.MultiheadAttention(16, 2, dropout=0.9, batch_first=True)
    fused = Forward(
        lambda self, x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.9 * self.training)
    )
    assert audit(encoder, x).seen == {"attention dropout": 1, "element-wise dropout": 3}
    assert audit(torchvision_like, x, x, x).seen == {"attention dropout": 1}
    (finding,) = findings(fused, x)["high-drop-rate"]
    assert "attention" in finding.message
    always = Forward(lambda self, x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.1))
    assert "dropout-active-in-eval" in findings(always, x)
    recurrent = nn.LSTM(16, 8, num_layers=2, dropout=0.3)
    assert audit(recurrent, x).seen == {"recurrent dropout": 1}
    assert not audit(nn.LSTM(16, 8, num_layers=2), x).seen


def test_a_rate_that_attention_takes_without_calling_the_module_is_not_unwired() -> None:
    model = timm.create_model("vit_tiny_patch16_224", attn_drop_rate=0.1, depth=2)
    assert "dropout-never-called" not in findings(model, torch.randn(1, 3, 224, 224))


def test_attention_maps_and_tokens_are_no_feature_maps() -> None:
    swin = torchvision.models.swin_t(dropout=0.1, attention_dropout=0.1)
    assert "elementwise-dropout-on-feature-map" not in findings(swin, torch.randn(1, 3, 64, 64))


def test_a_batch_of_one_is_audited_and_the_norm_it_breaks_is_named() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 2))
    found = findings(model, torch.randn(1, 8))
    assert found["bn-one-value-per-sample"][0].severity == "error"
    assert findings(model, torch.randn(2, 8))["bn-one-value-per-sample"][0].severity == "info"


def test_training_mode_that_fails_is_audited_in_evaluation_and_said() -> None:
    def needs_targets(self: Any, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            raise ValueError("targets should not be none")
        return self.layers(x)

    layers = nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 8), nn.BatchNorm1d(8))
    report = audit(Forward(needs_targets, layers=layers), torch.randn(4, 8))
    assert any("training mode fails (ValueError: targets" in note for note in report.notes)
    found = [f.module for f in report.findings if f.rule == "dropout-before-bn"]
    assert found == ["layers.2"]


def test_what_cannot_be_seen_is_said() -> None:
    scripted = torch.jit.script(nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5)))
    model = nn.Sequential(nn.Dropout(0.5), scripted, nn.BatchNorm1d(8))
    report = audit(model, torch.randn(4, 8))
    assert any("scripted modules are opaque: 1" in note for note in report.notes)
    assert report.findings[0].path == ("opaque",)  # what goes in is followed to what comes out

    def by_numpy(self: Any, x: torch.Tensor) -> torch.Tensor:
        return self.norm(torch.from_numpy(x.numpy() * 2))

    report = audit(Forward(by_numpy, norm=nn.BatchNorm1d(8)), torch.randn(4, 8))
    assert any("data leave torch by numpy at" in note for note in report.notes)

    def layer_drop(self: Any, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) if torch.rand(()) < 0.5 else x

    report = audit(Forward(layer_drop, linear=nn.Linear(8, 8)), torch.randn(4, 8))
    assert any("a random number decides in Python at" in note for note in report.notes)


def test_compiled_and_checkpointed_models_are_seen_through() -> None:
    def checkpointed(self: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.utils.checkpoint.checkpoint(self.body_, x, use_reentrant=False)

    body = nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 8), nn.BatchNorm1d(8))
    (finding,) = findings(Forward(checkpointed, body_=body), torch.randn(4, 8))["dropout-before-bn"]
    assert finding.module == "body_.2"
    (finding,) = findings(torch.compile(body), torch.randn(4, 8))["dropout-before-bn"]
    assert (finding.module, finding.origin) == ("2", "0")


def test_a_deep_model_on_the_meta_device_costs_no_memory() -> None:
    with torch.device("meta"):
        blocks: list[nn.Module] = []
        for _ in range(300):
            blocks += [nn.Linear(20_000, 20_000), nn.BatchNorm1d(20_000), nn.ReLU()]
        model = nn.Sequential(*blocks, nn.Dropout(0.1), nn.Linear(20_000, 8), nn.BatchNorm1d(8))
    report = audit(model, torch.zeros(4, 20_000))  # 480 GB of weights, had they been real
    assert [f.module for f in report.findings if f.rule == "dropout-before-bn"] == ["902"]
    assert report.seen["BatchNorm"] == 301


class VAE(nn.Module):
    """Samples its latents; its decoder has a BatchNorm."""

    def __init__(self, always: bool) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(8, 8), nn.Linear(4, 8)
        self.norm, self.always = nn.BatchNorm1d(8), always

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, log_std = self.encoder(x).chunk(2, 1)
        if self.training or self.always:
            mean = mean + torch.randn_like(mean) * log_std.exp()
        return self.norm(self.decoder(mean))


def test_sampling_that_evaluation_does_too_is_no_fault() -> None:
    x = torch.randn(6, 8)
    assert not audit(VAE(always=True), x).at_least("warning")
    # Sampling in training alone does shift the variance.
    (finding,) = findings(VAE(always=False), x)["dropout-before-bn"]
    assert finding.severity == "warning"


def test_a_random_order_is_no_dropout() -> None:
    def masked_loss(self: Any, x: torch.Tensor) -> torch.Tensor:
        order = torch.rand_like(x).argsort(1)
        return self.linear(x) * (order < 4)

    assert not audit(Forward(masked_loss, linear=nn.Linear(8, 8)), torch.randn(4, 8)).findings


@pytest.mark.parametrize("rate", [0.1, 0.4])
def test_a_mask_that_says_what_is_dropped(rate) -> None:
    def masked(self: Any, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            x = x.masked_fill(torch.rand_like(x) < rate, 0.0)
        return self.norm(x)

    (finding,) = findings(Forward(masked, norm=nn.BatchNorm1d(8)), torch.randn(6, 8))[
        "dropout-before-bn"
    ]
    assert f"rate {rate:g}" in finding.message


@pytest.mark.parametrize("invert", [lambda m: 1 - m, lambda m: ~m.bool()], ids=["minus", "not"])
def test_a_mask_that_is_turned_round(invert) -> None:
    def masked(self: Any, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            x = x * invert(torch.empty_like(x).bernoulli_(0.1))
        return self.norm(x)

    (finding,) = findings(Forward(masked, norm=nn.BatchNorm1d(8)), torch.randn(6, 8))[
        "dropout-before-bn"
    ]
    assert "rate 0.1" in finding.message


def test_block_dropout_states_no_rate_of_single_pixels() -> None:
    model = timm.create_model("resnet18", drop_block_rate=0.1)
    found = findings(model, torch.randn(2, 3, 64, 64))
    assert [f.severity for f in found["dropout-before-bn"]] == ["error"] * 4
    assert "block dropout in layer3.0.drop_block" in found["dropout-before-bn"][0].message
    assert "high-drop-rate" not in found


def test_parts_in_evaluation_mode_are_audited_as_they_would_be_trained() -> None:
    backbone = nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 8)).eval()
    model = nn.Sequential(backbone, nn.BatchNorm1d(8))
    assert audit(model, torch.randn(6, 8)).findings[0].rule == "dropout-before-bn"
    assert not backbone.training
    model[1].eval()  # a norm that its owner froze
    assert "dropout-before-bn" not in findings(model, torch.randn(6, 8))


def test_a_frozen_teacher_may_stay_in_evaluation_mode_at_the_fit() -> None:
    teacher = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.1)).eval().requires_grad_(False)
    model = nn.Sequential(teacher, nn.Linear(8, 2))
    assert "left-in-eval-at-fit" not in findings(model, torch.randn(4, 8), at_fit=True)
    teacher.requires_grad_(True)
    (finding,) = findings(model, torch.randn(4, 8), at_fit=True)["left-in-eval-at-fit"]
    assert finding.module == "0"


def test_a_bias_for_each_position_before_batchnorm_is_not_idle() -> None:
    def project(self: Any, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.linear(x).view(-1, 4, 3, 3))

    model = Forward(project, linear=nn.Linear(8, 36), norm=nn.BatchNorm2d(4))
    assert "bias-before-bn" not in findings(model, torch.randn(6, 8))


def test_mappings_and_inputs_without_tensors() -> None:
    class Encoding(UserDict):  # as a tokenizer gives
        pass

    model = Forward(lambda self, **inputs: self.norm(self.drop(inputs["x"])))
    model.add_module("drop", nn.Dropout(0.5))
    model.add_module("norm", nn.BatchNorm1d(8))
    model.forward = lambda **inputs: model.body(model, **inputs)
    report = audit(model, kwargs=Encoding(x=torch.randn(6, 8)))
    assert [f.rule for f in report.findings if f.severity == "error"] == ["dropout-before-bn"]
    generator = Forward(lambda self, count: self.norm(torch.randn(count, 8)))
    generator.add_module("norm", nn.BatchNorm1d(8))
    assert "no tensor among the inputs" in audit(generator, 6).notes[0]


def test_a_parameter_that_is_set_anew_comes_back() -> None:
    def renormalize(self: Any, x: torch.Tensor) -> torch.Tensor:
        self.linear.weight.data = torch.renorm(self.linear.weight.data, 2, 0, 0.1)
        return self.linear(x)

    model = Forward(renormalize, linear=nn.Linear(8, 8))
    before = model.linear.weight.detach().clone()
    audit(model, torch.randn(4, 8))
    assert torch.equal(model.linear.weight, before)


def test_a_trainer_gives_optimizers_and_modes() -> None:
    from lightning.pytorch import Trainer

    trainer = Trainer(logger=False, accelerator="cpu", enable_checkpointing=False)
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.1), nn.Linear(8, 2)).eval()
    trainer.strategy.optimizers = [torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)]
    found = findings(model, torch.randn(4, 8), trainer=trainer)
    assert {"left-in-eval-at-fit", "decay-on-norm-or-bias"} <= set(found)


# -- options ---------------------------------------------------------------------------------------


def test_a_loader_gives_input_and_batch_size() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
    data = torch.utils.data.TensorDataset(torch.randn(12, 1, 8, 8), torch.zeros(12))
    loader = torch.utils.data.DataLoader(data, batch_size=3)
    (finding,) = findings(model, loader=loader)["bn-small-batch"]
    assert "batches of 3" in finding.message


def test_keyword_arguments_and_a_discriminator_by_name() -> None:
    model = Forward(lambda self, x: self.norm(x), norm=nn.BatchNorm1d(8))
    model.body = lambda self, *, x=None: self.norm(x)
    model.forward = lambda x: model.norm(x)
    found = findings(model, kwargs={"x": torch.randn(4, 8)}, discriminator="norm")
    assert [f.module for f in found["bn-in-discriminator"]] == ["norm"]


def test_bad_input_is_told() -> None:
    model = nn.Linear(8, 2)
    with pytest.raises(zoo.UserError, match="needs an example input"):
        audit(model)
    with pytest.raises(zoo.UserError, match="does not run on these inputs: RuntimeError"):
        audit(model, torch.randn(4, 3))
    with pytest.raises(zoo.UserError, match="did you mean 'dropout-before-bn'"):
        audit(model, torch.randn(4, 8), rules=["dropout-before-batchnorm"])
    with pytest.raises(zoo.UserError, match="lazy parameter"):
        audit(nn.LazyLinear(4), torch.randn(4, 8))


# -- the report ------------------------------------------------------------------------------------


def test_report_as_text_json_and_sarif() -> None:
    model = nn.Sequential(nn.Dropout(0.6), nn.Linear(8, 8), nn.BatchNorm1d(8))
    report = audit(model, torch.randn(4, 8))
    text = str(report)
    assert text.startswith("Sequential on 4×8: 1 BatchNorm, 1 element-wise dropout")
    assert "error: dropout (rate 0.6) in 0 reaches BatchNorm 2 straight (between: linear)" in text
    assert text.endswith("1 error, 1 warning, 2 infos")
    content = json.loads(report.to_json())
    assert content["ok"] is False
    assert content["findings"][0]["rule"] == "dropout-before-bn"
    assert content["findings"][0]["path"] == ["linear"]
    sarif = json.loads(report.to_sarif())
    (run,) = sarif["runs"]
    rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    for result in run["results"]:
        assert rules[result["ruleIndex"]] == result["ruleId"]
        assert result["level"] in ("error", "warning", "note")
    clean = audit(nn.Linear(8, 8), torch.randn(4, 8))
    assert clean.ok
    assert str(clean).endswith("clean")


def test_sarif_points_at_the_line() -> None:
    model = Forward(by_hand, linear=nn.Linear(8, 8), norm=nn.BatchNorm1d(8))
    sarif = json.loads(audit(model, torch.randn(6, 8)).to_sarif())
    result = sarif["runs"][0]["results"][0]
    place = result["locations"][0]["physicalLocation"]
    assert place["artifactLocation"]["uri"].endswith("test_audit.py")
    first = by_hand.__code__.co_firstlineno
    assert first < place["region"]["startLine"] <= first + 3


# -- what lends its shape, and what does not reach -------------------------------------------------


def lends_view(self: Any, x: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    return self.linear(x).view_as(d)


def lends_expand(self: Any, x: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    return self.linear(x)[:, None].expand_as(d[:, None])[:, 0]


def lends_type(self: Any, x: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    return self.linear(x).to(d).type_as(d)


def lends_to_broadcast(self: Any, x: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    return torch.broadcast_tensors(self.linear(x), d)[0]


def lends_ones(self: Any, x: torch.Tensor, d: torch.Tensor) -> torch.Tensor:
    return self.linear(x) * torch.ones_like(d) + d.new_zeros(d.shape)


@pytest.mark.parametrize(
    "lend", [lends_view, lends_expand, lends_type, lends_to_broadcast, lends_ones]
)
def test_a_tensor_that_lends_its_shape_lends_no_values(lend) -> None:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        d = self.drop(x)
        return self.norm(lend(self, x, d)) + d

    model = Forward(forward, drop=nn.Dropout(0.5), linear=nn.Linear(8, 8), norm=nn.BatchNorm1d(8))
    x = torch.randn(6, 8)
    assert changed_by_the_seed(model, x, set())[0] == set()
    assert "dropout-before-bn" not in findings(model, x)

    def reversed_(self: Any, x: torch.Tensor) -> torch.Tensor:  # the dropped one is shaped
        return self.norm(lend(self, self.drop(x), x))

    model.body = reversed_
    assert changed_by_the_seed(model, x, {"norm"})[0] == {"norm"}
    assert "dropout-before-bn" in findings(model, x)


@pytest.mark.parametrize("which", [0, 1, -1])
def test_of_a_recurrent_layers_states_the_first_stands_before_its_dropout(which) -> None:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.lstm(x)[1][0][which])

    model = Forward(forward, lstm=nn.LSTM(8, 8, 2, dropout=0.5), norm=nn.BatchNorm1d(8))
    x = torch.randn(5, 4, 8)
    changed, _ = changed_by_the_seed(model, x, {"norm"} if which else set())
    assert changed == ({"norm"} if which else set())
    assert {f.module for f in findings(model, x).get("dropout-before-bn", [])} == changed


def test_dropped_weights_of_a_recurrent_layer_are_seen() -> None:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        lstm = self.lstm
        lstm.weight_hh_l0 = F.dropout(self.raw, 0.5, self.training)
        return self.norm(lstm(x)[0].transpose(1, 2))

    model = Forward(forward, lstm=nn.LSTM(8, 8), norm=nn.BatchNorm1d(8))
    model.raw = nn.Parameter(model.lstm.weight_hh_l0.detach().clone())
    del model.lstm._parameters["weight_hh_l0"]
    (finding,) = findings(model, torch.randn(5, 4, 8))["dropout-before-bn"]
    assert (finding.severity, finding.module) == ("error", "norm")


def test_a_norm_that_its_own_train_freezes_is_no_fault() -> None:
    class Frozen(nn.Sequential):
        def train(self, mode: bool = True) -> nn.Module:
            super().train(mode)
            self[2].eval()
            return self

    parts = nn.Dropout(0.3), nn.Linear(8, 8), nn.BatchNorm1d(8)
    x = torch.randn(4, 8)
    for model in (Frozen(*parts), Frozen(*parts).eval(), nn.Sequential(Frozen(*parts))):
        assert "dropout-before-bn" not in findings(model, x)
    assert "dropout-before-bn" in findings(nn.Sequential(*parts).train(), x)


def test_a_norm_that_goes_by_the_batch_in_evaluation_too_is_no_fault() -> None:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        norm = self.norm
        return F.batch_norm(self.drop(x), norm.running_mean, norm.running_var, training=True)

    model = Forward(forward, drop=nn.Dropout(0.5), norm=nn.BatchNorm1d(8))
    assert "dropout-before-bn" not in findings(model, torch.randn(4, 8))


@pytest.mark.parametrize(
    ("layers", "shape", "idle"),
    [
        ((nn.Linear(8, 8), nn.BatchNorm1d(8)), (16, 8, 8), False),
        ((nn.Linear(8, 8), nn.BatchNorm1d(8)), (16, 8), True),
        ((nn.Linear(8, 8), nn.Flatten(0, 1), nn.BatchNorm1d(8)), (4, 8, 8), True),
        ((nn.Conv1d(8, 8, 1), nn.BatchNorm1d(8)), (4, 8, 8), True),
        ((nn.Conv2d(8, 8, 1), nn.Flatten(2), nn.BatchNorm1d(8)), (4, 8, 2, 4), True),
        ((nn.Conv2d(8, 8, 1), nn.Flatten(1), nn.BatchNorm1d(32)), (4, 8, 2, 2), True),
        ((nn.Conv1d(8, 8, 1), nn.Flatten(1), nn.BatchNorm1d(24)), (4, 8, 3), True),
        ((nn.Linear(8, 8), nn.Flatten(1), nn.BatchNorm1d(24)), (4, 3, 8), True),
        ((nn.ConvTranspose2d(8, 8, 2), nn.BatchNorm2d(8)), (4, 8, 2, 2), True),
        ((nn.Linear(8, 8), nn.Unflatten(1, (4, 2)), nn.BatchNorm1d(4)), (16, 8), False),
    ],
)
def test_a_bias_is_idle_only_along_the_channels_of_the_norm(layers, shape, idle) -> None:
    model, x = nn.Sequential(*layers), torch.randn(shape)
    plain = model(x)
    with torch.no_grad():
        model[0].bias += torch.randn(8)
    assert torch.allclose(model(x), plain, atol=1e-4) == idle  # what the bias does
    assert ("bias-before-bn" in findings(model, x)) == idle


# -- whose statistics, and whose randomness --------------------------------------------------------


def test_which_of_several_biases_is_idle_is_said() -> None:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        x = F.conv2d(x, self.first_weight, self.first_bias).relu()
        return self.norm(F.conv2d(x, self.second_weight, self.second_bias))

    model = Forward(forward, norm=nn.BatchNorm2d(8))
    for which in ("first", "second"):
        model.register_parameter(f"{which}_weight", nn.Parameter(torch.randn(8, 8, 1, 1)))
        model.register_parameter(f"{which}_bias", nn.Parameter(torch.randn(8)))
    (finding,) = findings(model, torch.randn(4, 8, 3, 3))["bias-before-bn"]
    assert "the bias second_bias does nothing before BatchNorm norm" in finding.message
    plain = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
    (finding,) = findings(plain, torch.randn(4, 8))["bias-before-bn"]
    assert "the bias of 0 does nothing before BatchNorm 1" in finding.message


def test_two_norms_called_by_forward_are_two() -> None:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        return self.second.forward(self.linear(self.first.forward(x)))

    norms = {name: nn.BatchNorm1d(8, affine=False) for name in ("first", "second")}
    model = Forward(forward, linear=nn.Linear(8, 8), **norms)
    assert "bn-shared" not in findings(model, torch.randn(4, 8))

    def twice(self: Any, x: torch.Tensor) -> torch.Tensor:
        first = self.first
        x = F.batch_norm(x, first.running_mean, first.running_var, training=self.training)
        return first.forward(self.linear(x))

    model.body = twice
    (finding,) = findings(model, torch.randn(4, 8))["bn-shared"]
    assert finding.module == "first"


@pytest.mark.parametrize("how", ["numpy", "generator", "python", "list", "scalar", "way"])
def test_randomness_from_outside_torch_is_seen(how) -> None:
    own = np.random.default_rng(0)

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            if how == "numpy":
                kept = np.random.rand(*x.shape) < 0.5  # noqa: NPY002
                x = x * torch.from_numpy(kept.astype(np.float32))
            elif how == "generator":
                x = x * torch.from_numpy(self.own.random(x.shape, dtype=np.float32))
            elif how == "python":
                x = x * torch.tensor([random.random() < 0.5 for _ in range(8)])
            elif how == "list":
                x = x * x.new_tensor([[random.random() < 0.5 for _ in "12345678"]])
            elif how == "scalar":
                x = x * (random.random() < 0.5)
            elif random.random() < 0.5:
                x = F.dropout(x, 0.5)
        return self.norm(self.linear(x))

    model = Forward(forward, linear=nn.Linear(8, 8), norm=nn.BatchNorm1d(8))
    model.own = own
    report = audit(model, torch.randn(6, 8))
    assert [f.module for f in report.findings if f.rule == "dropout-before-bn"] == ["norm"]
    decides = any("of Python or numpy decides in Python at" in note for note in report.notes)
    assert decides == (how == "way")


def test_a_way_that_chance_takes_seldom_is_followed_too() -> None:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        if self.training and torch.rand(()) < 0.4:
            return self.second(self.drop(x))
        return self.first(x)

    model = Forward(
        forward, drop=nn.Dropout(0.5), first=nn.BatchNorm1d(8), second=nn.BatchNorm1d(8)
    )
    assert [f.module for f in findings(model, torch.randn(6, 8))["dropout-before-bn"]] == ["second"]


@pytest.mark.parametrize("inside", [False, True], ids=["before", "within"])
def test_batchnorm_and_vmap(inside) -> None:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        drop, norm = self.drop, self.norm
        if inside:
            each = lambda one: norm.eval()(drop(one))  # noqa: E731
            return torch.vmap(each, randomness="different")(x[None])
        return norm(torch.vmap(lambda one: self.linear(drop(one)), randomness="different")(x))

    model = Forward(forward, drop=nn.Dropout(0.5), linear=nn.Linear(8, 8), norm=nn.BatchNorm1d(8))
    report = audit(model, torch.randn(6, 8))
    assert report.seen == {
        "frozen BatchNorm" if inside else "BatchNorm": 1,
        "element-wise dropout": 1,
    }
    found = [f.module for f in report.findings if f.rule == "dropout-before-bn"]
    assert found == ([] if inside else ["norm"])
    assert not report.notes


def test_flex_attention_is_seen_through() -> None:
    flex = pytest.importorskip("torch.nn.attention.flex_attention").flex_attention

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        query = self.drop(x)[:, None]
        return self.norm(flex(query, query, query)[:, 0])

    model = Forward(forward, drop=nn.Dropout(0.5), norm=nn.BatchNorm1d(128))
    (finding,) = findings(model, torch.randn(2, 128, 16))["dropout-before-bn"]
    assert (finding.module, finding.origin) == ("norm", "drop")


def test_a_plain_vit_has_no_tensor_of_unknown_origin() -> None:
    model = timm.create_model("vit_tiny_patch16_224", depth=2)
    assert audit(model, torch.randn(1, 3, 224, 224)).notes == []


@pytest.mark.parametrize("kind", ["scripted", "traced", "exported", "a part"])
def test_what_cannot_be_followed_is_not_audited(kind) -> None:
    faulty: nn.Module = nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 8), nn.BatchNorm1d(8))
    x = torch.randn(4, 8)
    if kind == "traced":
        model = torch.jit.trace(faulty.eval(), x)
    elif kind == "exported":
        model = torch.export.export(faulty, (x,)).module()
    else:
        model = torch.jit.script(faulty)
    if kind == "a part":
        model = nn.Sequential(nn.Linear(8, 8), model)
    report = audit(model, x)
    assert not report.ok
    assert not report.audited
    assert report.unseen == ["1" if kind == "a part" else ""]
    text = str(report)
    assert "not audited: " in text
    assert "clean" not in text
    assert "no BatchNorm and no dropout" not in text
    assert json.loads(report.to_json())["audited"] is False
    with pytest.raises(AssertionError, match="not audited"):
        zoo.testing.assert_clean(model, x)


def test_instancenorm_with_running_statistics_is_audited() -> None:
    norm = nn.InstanceNorm1d(8, track_running_stats=True)
    model = nn.Sequential(nn.Dropout(0.5), nn.Conv1d(8, 8, 1), norm)
    report = audit(model, torch.randn(4, 8, 10))
    assert report.seen["InstanceNorm with running statistics"] == 1
    assert [f.module for f in report.findings if f.rule == "dropout-before-bn"] == ["2"]
    model = nn.Sequential(nn.Dropout(0.5), nn.Conv1d(8, 8, 1), nn.InstanceNorm1d(8))
    assert "dropout-before-bn" not in findings(model, torch.randn(4, 8, 10))


def test_example_inputs_in_every_form() -> None:
    class Encoding(UserDict):  # as a tokenizer gives
        pass

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop, self.norm = nn.Dropout(0.5), nn.BatchNorm1d(8)

        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return self.norm(self.drop(a) + b)

    model, x = Two(), torch.randn(4, 8)
    reports = [
        audit(model, x, x),
        audit(model, (x, x)),
        audit(model, {"a": x, "b": x}),
        audit(model, Encoding(a=x, b=x)),
        audit(model, x, kwargs={"b": x}),
        audit(model, x, forward=lambda one: model(one, one)),
        audit(model, loader=[(x, x, torch.zeros(4))], rules=["dropout-before-bn"]),
        audit(model, loader=[{"a": x, "b": x, "labels": x}], rules=["dropout-before-bn"]),
    ]
    for report in reports:
        assert [f.module for f in report.findings if f.rule == "dropout-before-bn"] == ["norm"]
    with pytest.raises(zoo.UserError, match="forward= runs it on other inputs"):
        audit(model, x)


# -- the checkpoint, the decay, and units that are dead --------------------------------------------


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_updates_a_norm_twice_a_step(reentrant) -> None:
    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        x = torch.utils.checkpoint.checkpoint(self.inside, x, use_reentrant=reentrant)
        return self.outside(x)

    model = Forward(forward, inside=nn.BatchNorm1d(8), outside=nn.BatchNorm1d(8))
    x = torch.randn(4, 8, requires_grad=True)
    found = findings(model, x)["bn-in-checkpoint"]
    assert [finding.module for finding in found] == ["inside"]
    model(x).sum().backward()
    assert model.inside.num_batches_tracked == 2
    assert model.outside.num_batches_tracked == 1


def test_decay_on_an_embedding_unless_it_is_the_output_layer_too() -> None:
    def forward(self: Any, tokens: torch.Tensor) -> torch.Tensor:
        return F.linear(self.table(tokens), self.head.weight)

    model = Forward(forward, table=nn.Embedding(10, 8), head=nn.Linear(8, 10, bias=False))
    tokens = torch.randint(10, (4, 5))
    decaying = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
    (finding,) = findings(model, tokens, optimizer=decaying)["decay-on-embedding"]
    assert (finding.module, finding.message) == (
        "table",
        "the embedding table.weight decays by 0.1",
    )
    model.head.weight = model.table.weight
    decaying = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
    assert "decay-on-embedding" not in findings(model, tokens, optimizer=decaying)


@pytest.mark.parametrize("kind", ["linear", "conv", "tokens", "functional"])
def test_channels_that_are_never_active_are_counted(kind) -> None:
    torch.manual_seed(0)
    layer: nn.Module = nn.Conv2d(8, 12, 1) if kind == "conv" else nn.Linear(8, 12)
    with torch.no_grad():
        layer.bias[:5] = -100
    shape = {"conv": (40, 8, 3, 3), "tokens": (40, 5, 8)}.get(kind, (40, 8))
    loader = [torch.randn(shape) for _ in range(4)]
    if kind == "functional":
        model: nn.Module = Forward(lambda self, x: F.relu(self.layer(x)), layer=layer)
    else:
        model = nn.Sequential(layer, nn.ReLU(inplace=True))
    alive = torch.cat([layer(x) for x in loader]).transpose(1, -1).flatten(0, -2).amax(0) > 0
    dead = 12 - int(alive.sum()) if kind != "tokens" else 5
    assert dead >= 5
    (finding,) = findings(model, loader=loader)["dead-units"]
    assert f"{dead} of 12 channels of relu" in finding.message
    assert "160 samples" in finding.message
    assert "samples: 0, 1, 2, 3, 4" in finding.message
    assert "dead-units" not in findings(model, loader=loader[:1])  # too few to tell
    with torch.no_grad():
        layer.bias.zero_()
    assert "dead-units" not in findings(model, loader=loader)
