"""What every network must do. A new one joins by a line in harness.CASES."""

from __future__ import annotations

import copy
import inspect
import json
import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from timm.layers import DropPath
from torch import nn

import zoo
from tests.networks.harness import CASES, DROPOUT_KINDS, IMAGE_CASES, Case
from zoo import networks
from zoo.checkpoints import store
from zoo.diagnostics.trace.recorder import record
from zoo.tasks import ImageClassifier

every_network = pytest.mark.parametrize("case", CASES, ids=str)
every_image_network = pytest.mark.parametrize("case", IMAGE_CASES, ids=str)


def buffers(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


def test_every_registered_network_has_a_case() -> None:
    # timm's are timm's; a GAN is its two parts.
    assert {case.name for case in CASES} == set(networks.REGISTRY) - {"timm_network", "SNGAN"}


def test_networks_import_no_lightning() -> None:
    code = "import sys, zoo.networks; sys.exit('lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@every_image_network
def test_logits_and_features_fit_together(case: Case) -> None:
    network, images = case.build().eval(), case.images()
    with torch.no_grad():
        features = network.forward_features(images)
        logits = network(images)
        assert logits.shape == (4, 5, *case.pixels)
        assert torch.equal(network.forward_head(features), logits)
        pooled = network.forward_head(features, pre_logits=True)
        assert pooled.shape == (4, network.num_features, *case.pixels)
        assert torch.equal(network.get_classifier()(pooled), logits)


@every_image_network
def test_the_classifier_can_be_renewed_and_removed(case: Case) -> None:
    network = case.build().eval()
    network.reset_classifier(7)
    assert network(case.images()).shape == (4, 7, *case.pixels)
    assert network.config["num_classes"] == 7
    network.reset_classifier(0)
    assert network(case.images()).shape == (4, network.num_features, *case.pixels)


@every_network
def test_the_configuration_is_json_and_makes_the_same_network(case: Case) -> None:
    network = case.build()
    description = json.loads(json.dumps(networks.describe(network)))
    assert description["args"] == json.loads(json.dumps({**network.config}))
    assert set(description["args"]) == set(inspect.signature(type(network)).parameters)
    twin = networks.build(description)
    twin.load_state_dict(network.state_dict())
    twin.eval(), network.eval()
    assert torch.equal(twin(*case.inputs()), network(*case.inputs()))
    assert copy.deepcopy(network).config == network.config


@every_network
def test_it_saves_and_loads_in_hugging_face_layout(case: Case, tmp_path) -> None:
    network = case.build().eval()
    network.save_pretrained(tmp_path)
    twin = type(network).from_pretrained(tmp_path).eval()
    assert torch.equal(twin(*case.inputs()), network(*case.inputs()))


@every_network
def test_evaluation_is_deterministic_and_takes_a_batch_of_one(case: Case) -> None:
    network, inputs = case.build().eval(), case.inputs()
    before = buffers(network)
    with torch.no_grad():
        together = network(*inputs)
        assert torch.equal(together, network(*inputs))
        torch.testing.assert_close(network(*(part[:1] for part in inputs)), together[:1])
    assert all(torch.equal(before[name], buffer) for name, buffer in network.named_buffers())


@every_network
def test_every_parameter_gets_a_gradient(case: Case) -> None:
    network = case.build().train()
    # Zero-initialized gammas hide what follows them: one step away from the start none does.
    for parameter in network.parameters():
        parameter.data += 0.01 * torch.randn_like(parameter)
    network(*case.inputs(8)).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@every_image_network
def test_freezing_leaves_every_buffer_of_the_backbone_bit_identical(case: Case) -> None:
    network = zoo.freeze(case.build())
    trainable = [name for name, p in network.named_parameters() if p.requires_grad]
    classifier = network.get_classifier()
    prefix = next(name for name, module in network.named_modules() if module is classifier)
    assert set(trainable) == {f"{prefix}.{name}" for name, _ in classifier.named_parameters()}
    before = buffers(network)
    optimizer = torch.optim.SGD((p for p in network.parameters() if p.requires_grad), lr=0.1)
    for _ in range(3):
        network.train()  # does not thaw
        network(case.images() * 3 + 1).square().sum().backward()
        optimizer.step()
    assert all(torch.equal(before[name], buffer) for name, buffer in network.named_buffers())
    assert network.training

    zoo.unfreeze(network).train()
    network(case.images() * 3 + 1)
    moved = [not torch.equal(before[name], buffer) for name, buffer in network.named_buffers()]
    assert all(moved)


@every_image_network
def test_a_frozen_network_can_be_copied(case: Case) -> None:
    network = zoo.freeze(case.build())
    twin = copy.deepcopy(network).train()
    norms = [m for m in twin.modules() if isinstance(m, nn.BatchNorm2d)]
    assert bool(norms) == bool(case.promise["BatchNorm"])
    assert not any(norm.training for norm in norms)
    before = buffers(network)
    twin(case.images())
    assert all(torch.equal(before[name], buffer) for name, buffer in network.named_buffers())


@every_image_network
def test_channels_last_and_bfloat16_change_speed_not_meaning(case: Case) -> None:
    network, images = case.build().eval(), case.images()
    expected = network(images)
    network.to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        result = network(images.contiguous(memory_format=torch.channels_last)).float()
    # bfloat16 keeps 8 bits of a number; the error of a sum over layers is a few of their units.
    assert (result - expected).abs().max() < 0.05 * expected.abs().max() + 0.02


# -- normalization and dropout, where each architecture promises them ------------------------------


@every_network
def test_normalization_and_dropout_are_what_the_architecture_promises(case: Case) -> None:
    """By behavior: what a recorded training forward does, whatever the modules are called."""
    report = zoo.audit(case.build(), *case.inputs())
    assert dict(case.promise) == {
        "BatchNorm": report.seen.pop("BatchNorm", 0),
        "GroupNorm": calls(case, "group_norm"),
        "LayerNorm": calls(case, "layer_norm"),
        "RMSNorm": calls(case, "rms_norm"),
        **dict.fromkeys(DROPOUT_KINDS, 0),
        **report.seen,
    }


@every_network
def test_the_audit_finds_nothing_grave(case: Case) -> None:
    report = zoo.audit(case.build(), *case.inputs(), batch_size=64)
    assert not report.at_least("warning"), str(report)
    assert not [finding for finding in report.findings if finding.rule == "bias-before-bn"]


def calls(case: Case, function: str) -> int:
    trace = record(case.build(), case.inputs(), mode="training")
    return sum(node.op == function for node in trace.nodes)


def without_dropout(case: Case) -> Case:
    rates = {name: 0.0 for name in case.args if name.endswith(("drop_rate", "drop_path_rate"))}
    return replace(case, args={**case.args, **rates})


@every_network
def test_a_drop_rate_of_zero_in_training_is_no_dropout_at_all(case: Case) -> None:
    case = without_dropout(case)
    network, inputs = case.build().train(), case.inputs()
    state, twin = torch.get_rng_state(), copy.deepcopy(network)
    first = network(*inputs)
    assert torch.equal(torch.get_rng_state(), state)  # not one random number was drawn
    assert torch.equal(twin(*inputs), first)
    assert not any(
        "dropout" in kind or "depth" in kind for kind in zoo.audit(network, *inputs).seen
    )


def with_dropout(case: Case) -> Case:
    return replace(case, args={**case.args, **case.dropping})


@every_network
def test_each_drop_rate_arrives_where_it_was_asked_for(case: Case) -> None:
    case = with_dropout(case)
    asked = {value for name, value in case.args.items() if name.endswith("drop_rate") and value}
    trace = record(case.build(), case.inputs(), mode="training")
    rates = {"path": set[float](), "unit": set[float]()}
    for node in trace.dropouts:
        rates["path" if node.dropout.kind == "path" else "unit"].add(round(node.dropout.rate, 6))
    assert rates["unit"] == asked
    depth = case.args.get("drop_path_rate", 0.0)
    assert max(rates["path"], default=0.0) <= depth
    assert bool(rates["path"]) == bool(depth)


@every_network
def test_dropout_drops_its_rate_and_keeps_the_expectation(case: Case) -> None:
    """Every module that drops, given ones: a share of zeros as its rate says, and a mean of one."""
    torch.manual_seed(0)
    for module in with_dropout(case).build().train().modules():
        if isinstance(module, nn.Dropout | nn.Dropout2d | DropPath):
            rate = module.drop_prob if isinstance(module, DropPath) else module.p
            out = module(torch.ones(20_000, 2, 1, 1))
            error = 5 * (max(rate, 0.01) / 20_000) ** 0.5
            assert (out == 0).float().mean().item() == pytest.approx(rate, abs=error)
            assert out.mean().item() == pytest.approx(1, abs=3 * error)


def expected_variance(case: Case, layer: nn.Module, head: nn.Module | None) -> float:
    """Of a layer's initial weights, by the formula of the paper that the network follows."""
    positions = math.prod(getattr(layer, "kernel_size", (1,)))
    groups = getattr(layer, "groups", 1)
    outputs, inputs = layer.weight.shape[0], layer.weight.shape[1] * positions
    if case.init == "xavier":
        return 2 / (inputs + outputs * positions)  # Glorot & Bengio 2010
    if case.init == "transformer" and not (isinstance(layer, nn.Conv2d) and layer.bias is None):
        return 0.02**2
    if isinstance(layer, nn.ConvTranspose2d):
        return 1 / layer.in_channels
    if isinstance(layer, nn.Linear) or layer is head:
        return 1 / (3 * inputs)  # uniform in ±1/√inputs
    return 2 * groups / (positions * outputs)  # He et al. 2015


@every_network
def test_initial_weights_have_the_variance_of_their_formula(case: Case) -> None:
    network = case.build()
    head = network.get_classifier() if hasattr(network, "get_classifier") else None
    deviations = []
    kinds = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
    for name, layer in network.named_modules():
        if not isinstance(layer, kinds):
            continue
        variance = expected_variance(case, layer, head)
        if case.name == "Transformer" and name.endswith(("proj", "down")):
            variance /= 2 * case.args["depth"]  # GPT-2: so often is the residual stream added to
        # Spectral norm keeps the weight itself under another name.
        parametrized = getattr(layer, "parametrizations", None)
        weight = layer.weight if parametrized is None else parametrized.weight.original
        ratio = weight.square() / variance
        # The relative error of a variance estimated from so many normal values.
        error = (2 / ratio.numel()) ** 0.5
        assert ratio.mean().item() == pytest.approx(1, abs=5 * error), name
        deviations.append(ratio.flatten())
        assert getattr(layer, "bias", None) is None or not layer.bias.any(), name
    together = torch.cat(deviations)
    error = (2 / together.numel()) ** 0.5
    assert together.mean().item() == pytest.approx(1, abs=4 * error)


@pytest.mark.parametrize("case", [c for c in CASES if c.deep], ids=str)
def test_activations_and_gradients_survive_fifty_blocks(case: Case) -> None:
    """Less than 12 % a block; in a plain stack a factor of 1.6 a block would make it 10¹⁰."""
    network = without_dropout(replace(case, args={**case.args, **case.deep})).build().train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and not module.weight.any():
            nn.init.ones_(module.weight)  # the hardest case: no branch is switched off
    activations, gradients = [], []

    def watch(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        activations.append(output.detach().std().item())
        output.register_hook(lambda gradient: gradients.append(gradient.norm().item()))

    stacks = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
    (stack,) = [m for m in network.modules() if isinstance(m, stacks) and len(m) >= 50]
    for block in stack.children():
        block.register_forward_hook(watch)
    outputs = network(*case.inputs(16))
    outputs = outputs.flatten(0, -2)
    nn.functional.cross_entropy(outputs, torch.arange(len(outputs)) % 5).backward()
    assert len(activations) == len(gradients) >= 50
    for values in (activations, gradients):
        assert min(values) > 0
        assert max(values) / min(values) < 1.12**50


@every_image_network
def test_weights_that_are_saved_load_with_another_head_and_other_channels(
    case: Case, tmp_path
) -> None:
    task = ImageClassifier(case.build())
    channels = case.image[0]
    task.data_info = {
        "name": "made up",
        "classes": list("abcde"),
        "mean": [0.5] * channels,
        "std": [0.2] * channels,
        "input_shape": list(case.image),
    }
    store.save(task, tmp_path / "saved", {})
    same = zoo.load(tmp_path / "saved").network
    assert torch.equal(same(case.images()), task.eval()(case.images()))
    other = zoo.load(tmp_path / "saved", num_classes=3, in_channels=2)
    height, width = case.image[1:]
    assert other(torch.randn(2, 2, height, width)).shape == (2, 3, *case.pixels)
    assert other.data_info["input_shape"] == [2, height, width]
    before, after = same.state_dict(), other.network.state_dict()
    assert before.keys() == after.keys()
    changed = {name for name in before if before[name].shape != after[name].shape}
    assert 2 <= len(changed) <= 3  # the stem's weight, the head's weight and bias
    assert all(torch.equal(before[name], after[name]) for name in before.keys() - changed)
    twin = networks.build(networks.describe(other.network))
    twin.load_state_dict(after)


@pytest.mark.parametrize("case", [c for c in CASES if not c.promise["BatchNorm"]], ids=str)
def test_a_batch_of_one_trains_where_no_batchnorm_stands(case: Case) -> None:
    network = case.build().train()
    loss = network(*case.inputs(1)).square().sum()
    loss.backward()
    assert torch.isfinite(loss)


@every_image_network
def test_initial_logits_and_gradients_are_of_a_sane_size(case: Case) -> None:
    network = case.build().train()
    logits = network(case.images(64))
    labels = torch.arange(64) % 5
    if case.pixels:
        labels = labels[:, None, None].expand(-1, *case.pixels)
    assert 1e-3 < logits.std().item() < 5
    nn.functional.cross_entropy(logits, labels).backward()
    first = next(p for p in network.parameters() if p.ndim == 4)
    assert 1e-5 < first.grad.norm().item() < 100


def test_only_registered_networks_are_described_and_built() -> None:
    assert networks.describe(nn.Linear(2, 2)) is None
    with pytest.raises(ValueError, match=r"no network named 'os\.system'"):
        networks.build({"name": "os.system", "args": {}})
