"""timm's contract for feature extraction and fine-tuning, on every image network."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace
from typing import Any

import pytest
import timm
import torch
from timm.models import group_parameters
from timm.optim import create_optimizer_v2, param_groups_layer_decay
from torch import Tensor, nn

from tests.networks.harness import IMAGE_CASES, Case
from zoo import networks
from zoo.networks.checkpointing import recomputed

every_image_network = pytest.mark.parametrize("case", IMAGE_CASES, ids=str)

# Modules whose outputs are the stages; None stands for the features.
STAGES: dict[str, list[str | None]] = {
    "ResNet": ["relu", "layer1", "layer2"],
    "ConvNet": ["stages.0", "stages.1", "stages.2"],
    "DenseNet": ["features.relu0", "features.denseblock1", None],
    "PreActResNet": ["conv", "stages.0", "stages.1"],
    "EfficientNet": ["blocks.1", "blocks.2"],  # the first two share a resolution
    "ViT": ["blocks.0", "blocks.1"],
    "UNet": ["down.0", "down.1", "down.2", "up.0", "up.1"],
}


def perturbed(network: nn.Module) -> nn.Module:
    """Away from the start, where some branches are zero and all norms alike."""
    generator = torch.Generator().manual_seed(5)
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(0.05 * torch.rand(tensor.shape, generator=generator))
    return network


def hooked(network: nn.Module, case: Case, images: Tensor) -> list[Tensor]:
    """The outputs of the modules that ``STAGES`` names, in one forward."""
    outputs: dict[str, Tensor] = {}
    handles = [
        network.get_submodule(name).register_forward_hook(
            lambda *args, name=name: outputs.update({name: args[2].clone()})
        )
        for name in STAGES[case.name][: network.num_stages]
        if name is not None
    ]
    features = network.forward_features(images)
    for handle in handles:
        handle.remove()
    names = STAGES[case.name][: network.num_stages]
    return [features if name is None else outputs[name] for name in names]


def as_given(network: nn.Module, output: Tensor) -> Tensor:
    """A stage's output as ``forward_intermediates`` gives it: a ViT's patches as a map."""
    if output.ndim == 4:
        return output
    patches = output[:, output.shape[1] - 9 :]  # of 3 × 3
    return patches.transpose(1, 2).reshape(len(output), -1, 3, 3)


@every_image_network
def test_intermediates_are_the_outputs_of_the_stages(case: Case) -> None:
    network, images = perturbed(case.build()).eval(), case.images()
    with torch.no_grad():
        expected = [as_given(network, output) for output in hooked(network, case, images)]
        features, given = network.forward_intermediates(images)
        assert torch.equal(features, network.forward_features(images))
        assert len(given) == len(expected) == network.num_stages
        assert all(torch.equal(a, b) for a, b in zip(given, expected, strict=True))
        only = network.forward_intermediates(images, 2, intermediates_only=True)
        assert all(torch.equal(a, b) for a, b in zip(only, expected[-2:], strict=True))
        _, chosen = network.forward_intermediates(images, [-1, 0])
        assert torch.equal(chosen[0], expected[0])
        assert torch.equal(chosen[1], expected[-1])


@every_image_network
def test_the_final_norm_makes_the_last_intermediate_the_features(case: Case) -> None:
    network, images = perturbed(case.build()).eval(), case.images()
    with torch.no_grad():
        features, given = network.forward_intermediates(images, norm=True)
        raw = network.forward_intermediates(images, intermediates_only=True)
    if case.name not in ("ConvNet", "EfficientNet"):  # more than a norm follows there
        assert torch.equal(given[-1], as_given(network, features))
    changed = [not torch.equal(a, b) for a, b in zip(given, raw, strict=True)]
    assert changed == {
        "PreActResNet": [False, False, True],
        "ViT": [True, True],
    }.get(case.name, [False] * len(raw))


@every_image_network
def test_stopping_early_computes_nothing_after_the_last_stage_asked_for(case: Case) -> None:
    network, images = perturbed(case.build()).eval(), case.images()
    with torch.no_grad():
        ((expected,)) = network.forward_intermediates(images, [0], intermediates_only=True)
        last = network.get_submodule(STAGES[case.name][network.num_stages - 1] or "features.norm3")
        last.register_forward_pre_hook(lambda *_: pytest.fail("the last stage ran"))
        features, (given,) = network.forward_intermediates(images, [0], stop_early=True)
    assert torch.equal(given, expected)
    if case.name != "ViT":  # its features are tokens, and normalized
        assert torch.equal(features, given)


@every_image_network
@pytest.mark.parametrize("indices", [0, 99, [-99], [7], []])
def test_stages_that_there_are_not_are_refused(case: Case, indices: Any) -> None:
    network = case.build().eval()
    with pytest.raises(ValueError, match=rf"has {network.num_stages} stages"):
        network.forward_intermediates(case.images(), indices)
    with pytest.raises(ValueError, match="output_fmt is 'NHWC': choose NCHW"):
        network.forward_intermediates(case.images(), output_fmt="NHWC")


def test_a_vit_gives_tokens_and_its_class_token_on_request() -> None:
    case = next(c for c in IMAGE_CASES if "token" in str(c))
    network, images = perturbed(case.build()).eval(), case.images()
    with torch.no_grad():
        raw = hooked(network, case, images)
        given = network.forward_intermediates(
            images, return_prefix_tokens=True, output_fmt="NLC", intermediates_only=True
        )
    for (patches, prefix), tokens in zip(given, raw, strict=True):
        assert torch.equal(torch.cat([prefix, patches], 1), tokens)


# -- the classifier and the pooling ----------------------------------------------------------------


@every_image_network
def test_a_renewed_classifier_has_the_networks_mode_type_and_size(case: Case) -> None:
    network = case.build().eval().double()
    assert network.head_hidden_size == network.num_features
    network.reset_classifier(3)
    head = network.get_classifier()
    assert not head.training
    assert head.weight.dtype == torch.float64
    assert head.weight.shape[1] == network.head_hidden_size
    logits = network(case.images().double())
    assert torch.equal(logits, network(case.images().double()))  # nothing is dropped
    with pytest.raises(ValueError, match="num_classes is -1"):
        network.reset_classifier(-1)


@every_image_network
def test_a_pooling_that_a_network_cannot_have_is_refused(case: Case) -> None:
    network = case.build().eval()
    config = dict(network.config)
    with pytest.raises(ValueError, match="global_pool is 'max'"):
        network.reset_classifier(3, "max")
    assert network.config == config
    assert network.num_classes == 5
    if case.name in ("ConvNet", "UNet"):
        with pytest.raises(ValueError, match="takes nothing but None"):
            network.reset_classifier(3, "avg")
    else:
        network.reset_classifier(3, "avg")
        assert network(case.images()).shape == (4, 3)
        twin = networks.build(networks.describe(network)).eval()
        twin.load_state_dict(network.state_dict())
        assert torch.equal(twin(case.images()), network(case.images()))


def test_a_vit_changes_its_pooling_as_timms() -> None:
    args = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
    theirs = timm.models.VisionTransformer(num_classes=5, **args)
    perturbed(theirs).eval()
    ours = networks.ViT(5, 3, 16, 4, embed_dim=16, depth=2, num_heads=2).eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 16, 16)
    for pool in ("avg", "token"):
        theirs.reset_classifier(3, pool)
        ours.reset_classifier(3, pool)
        ours.head.load_state_dict(theirs.head.state_dict())
        assert ours.config["global_pool"] == pool
        with torch.no_grad():
            torch.testing.assert_close(ours(images), theirs(images))
    without = networks.ViT(5, 3, 16, 4, embed_dim=16, num_heads=2, global_pool="avg")
    with pytest.raises(ValueError, match="without a class token choose avg"):
        without.reset_classifier(5, "token")


# -- groups of parameters --------------------------------------------------------------------------

# The layers from the stem up; what no entry matches, the classifier, comes last.
GROUPS = {
    "ResNet": ["conv1 bn1", "layer1.0", "layer2.0", "layer2.1", "fc"],
    "ConvNet": ["stages.0", "stages.1", "stages.2", "hidden", "fc"],
    "DenseNet": [
        "features.conv0 features.norm0",
        "features.denseblock1.denselayer1",
        "features.denseblock1.denselayer2 features.transition1",
        "features.denseblock2.denselayer1",
        "features.norm3 classifier",
    ],
    "PreActResNet": ["conv", "stages.0.0", "stages.1.0", "stages.1.1 norm", "fc"],
    "EfficientNet": [
        "conv_stem bn1",
        *("blocks.0.0", "blocks.1.0", "blocks.1.1", "blocks.2.0"),
        "blocks.2.1 conv_head bn2",
        "classifier",
    ],
    "ViT": ["cls_token pos_embed patch_embed", "blocks.0", "blocks.1 norm", "head"],
    "UNet": ["down.0", "down.1", "down.2", "grow.0 up.0", "grow.1 up.1", "head"],
}


@every_image_network
def test_every_parameter_is_in_the_group_of_its_depth(case: Case) -> None:
    network = case.build()
    groups = group_parameters(network, network.group_matcher())
    expected = []
    for prefixes in GROUPS[case.name]:
        starts = tuple(f"{prefix}." for prefix in prefixes.split())
        group = {n for n, _ in network.named_parameters() if f"{n}.".startswith(starts)}
        if group:
            expected.append(group)
    assert [set(group) for _, group in sorted(groups.items())] == expected
    coarse = group_parameters(network, network.group_matcher(coarse=True))
    matched = [name for names in coarse.values() for name in names]
    assert sorted(matched) == sorted(name for name, _ in network.named_parameters())
    assert 3 <= len(coarse) <= len(groups)


@every_image_network
def test_layer_decay_gives_each_depth_its_learning_rate(
    case: Case, caplog: pytest.LogCaptureFixture
) -> None:
    network = case.build()
    with caplog.at_level(logging.WARNING):
        optimizer = create_optimizer_v2(network, "adamw", lr=1.0, layer_decay=0.5)
    assert not caplog.records
    scale = {id(p): g["lr_scale"] for g in optimizer.param_groups for p in g["params"]}
    groups = group_parameters(network, network.group_matcher())
    for depth, names in groups.items():
        for name in names:
            expected = 0.5 ** (len(groups) - 1 - depth)
            assert scale[id(network.get_parameter(name))] == expected, name


@every_image_network
def test_what_no_optimizer_should_decay_exists(case: Case) -> None:
    network = case.build()
    names = {name for name, _ in network.named_parameters()}
    unknown = network.no_weight_decay() - names
    assert unknown <= {"cls_token"}
    assert bool(network.no_weight_decay()) == (case.name == "ViT")


@pytest.mark.parametrize("name", ["resnet50", "vit_tiny_patch16_224"])
def test_groups_and_scales_are_timms(name: str) -> None:
    found = []
    for network in (getattr(networks, name)(), timm.create_model(name)):
        names = {id(parameter): name for name, parameter in network.named_parameters()}
        groups = param_groups_layer_decay(
            network, 0.05, network.no_weight_decay() if "vit" in name else (), layer_decay=0.75
        )
        found.append(
            [
                (g["lr_scale"], g["weight_decay"], [names[id(p)] for p in g["params"]])
                for g in groups
            ]
        )
    assert found[0] == found[1]


@pytest.mark.parametrize("name", ["efficientnet_b0", "densenet121", "resnet50"])
@pytest.mark.parametrize("coarse", [False, True])
def test_groups_of_convolutional_networks_are_timms(name: str, coarse: bool) -> None:
    with torch.device("meta"):
        ours, theirs = getattr(networks, name)(), timm.create_model(name)
    found = [group_parameters(n, n.group_matcher(coarse), reverse=True) for n in (ours, theirs)]
    assert found[0] == found[1]


# -- intermediates against timm's ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("resnet50", 64),
        ("efficientnet_b0", 64),
        ("densenet121", 64),
        ("vit_tiny_patch16_224", 224),
    ],
)
def test_intermediates_are_timms(name: str, size: int) -> None:
    torch.manual_seed(0)
    theirs = timm.create_model(name).eval()
    for key, tensor in theirs.state_dict().items():
        if tensor.ndim == 1 and tensor.is_floating_point() and "classifier" not in key:
            tensor.copy_(0.5 + torch.rand_like(tensor))
    ours = getattr(networks, name)().eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    images = torch.randn(1, 3, size, size)
    asked: list[dict[str, Any]] = [{}, {"indices": 2, "norm": True}]
    asked += [{"indices": [0, -2], "stop_early": True}]
    if "vit" in name:
        asked += [{"output_fmt": "NLC"}]
    for arguments in asked:
        with torch.no_grad():
            features, given = ours.forward_intermediates(images, **arguments)
            their_features, their_given = theirs.forward_intermediates(images, **arguments)
        assert len(given) == len(their_given)
        for mine, other in zip([features, *given], [their_features, *their_given], strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4)


# -- gradient checkpointing ------------------------------------------------------------------------


@every_image_network
def test_checkpointing_changes_no_gradient_and_no_buffer(case: Case) -> None:
    case = replace(case, args={**case.args, **case.dropping})
    network = perturbed(case.build()).train()
    twin = copy.deepcopy(network)
    twin.set_grad_checkpointing()
    results: list[dict[str, Any]] = []
    for net in (network, twin):
        torch.manual_seed(1)  # dropout draws alike
        net(case.images(8)).square().sum().backward()
        results.append({**{n: p.grad for n, p in net.named_parameters()}, **net.state_dict()})
    assert results[0].keys() == results[1].keys()
    for name, expected in results[0].items():
        assert torch.equal(results[1][name], expected), name


@every_image_network
def test_checkpointing_keeps_less_for_the_gradient(case: Case) -> None:
    network = case.build().train()

    def kept() -> int:
        sizes = {}

        def pack(tensor: Tensor) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            output = network(case.images(8)).sum()
        del output
        parameters = {p.untyped_storage().data_ptr() for p in network.parameters()}
        return sum(size for pointer, size in sizes.items() if pointer not in parameters)

    everything = kept()
    network.set_grad_checkpointing()
    assert kept() < everything
    network.set_grad_checkpointing(False)
    assert kept() == everything


def test_a_checkpointed_block_keeps_its_own_buffers() -> None:
    block = nn.Sequential(nn.BatchNorm2d(3, momentum=None), nn.ReLU())
    buffers = dict(block.named_buffers())
    images = torch.randn(4, 3, 5, 5, requires_grad=True)
    recomputed(block, images).sum().backward()
    assert all(buffer is buffers[name] for name, buffer in block.named_buffers())
    assert block[0].num_batches_tracked == 1
    torch.testing.assert_close(block[0].running_mean, images.mean((0, 2, 3)))
    with torch.no_grad():
        recomputed(block.eval(), images)
    assert block[0].num_batches_tracked == 1


@every_image_network
def test_a_network_is_exported_with_its_numbers(case: Case) -> None:
    network = case.build().eval()
    exported = torch.export.export(network, (case.images(),)).module()
    torch.testing.assert_close(exported(case.images()), network(case.images()))
