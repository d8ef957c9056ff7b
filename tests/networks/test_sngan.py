from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import zoo
from zoo.networks import SNGAN, Discriminator, Generator
from zoo.networks.sngan import ClassBatchNorm


def test_batchnorm_only_in_the_generator_and_dropout_nowhere() -> None:
    network = SNGAN(generator_width=8, discriminator_width=8)
    assert not [m for m in network.discriminator.modules() if "BatchNorm" in type(m).__name__]
    assert sum(isinstance(m, nn.BatchNorm2d) for m in network.generator.modules()) == 5
    assert not any("Dropout" in type(module).__name__ for module in network.modules())
    latents, labels = torch.randn(8, 64), torch.arange(8)
    assert zoo.audit(network.generator, latents, labels).seen == {"BatchNorm": 5}
    images = torch.randn(8, 1, 28, 28)
    assert not zoo.audit(network.discriminator, images, labels).seen
    whole = zoo.audit(network, latents, labels, batch_size=64)
    assert whole.seen == {"BatchNorm": 5}
    assert not whole.at_least("warning"), str(whole)


def test_every_weight_of_the_discriminator_has_spectral_norm() -> None:
    network = Discriminator(width=8)
    weighted = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear | nn.Embedding)]
    assert len(weighted) == 3 * 3 + 2
    assert all(parametrize.is_parametrized(module, "weight") for module in weighted)


def test_the_largest_singular_values_stay_near_one_while_it_trains() -> None:
    torch.manual_seed(0)
    network = Discriminator(3, width=16).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=4e-4, betas=(0.0, 0.9))
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=300)
    for _ in range(300):
        images, labels = torch.randn(16, 1, 16, 16), torch.randint(3, (16,))
        images[labels == 1] += 0.5
        scores = network(images, labels)
        (scores[labels == 0].mean() - scores[labels == 1].mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
        decay.step()
    assert largest_singular_values(network) == pytest.approx([1.0] * 11, abs=0.05)


def test_the_shipped_discriminator_kept_its_singular_values_near_one() -> None:
    network = zoo.load("gan_fmnist").network.discriminator
    assert largest_singular_values(network) == pytest.approx([1.0] * 11, abs=0.05)


def largest_singular_values(network: nn.Module) -> list[float]:
    """Of every weight under spectral norm."""
    network.eval()  # looking at a weight would improve it in training mode
    return [
        torch.linalg.matrix_norm(module.weight.flatten(1), ord=2).item()
        for module in network.modules()
        if parametrize.is_parametrized(module, "weight")
    ]


def test_the_input_scale_multiplies_the_images() -> None:
    torch.manual_seed(0)
    network = SNGAN(generator_width=8, discriminator_width=8, input_scale=4.0).discriminator.eval()
    plain = Discriminator(width=8).eval()
    plain.load_state_dict(network.state_dict())
    images, labels = torch.randn(6, 1, 28, 28), torch.arange(6)
    torch.testing.assert_close(network(images, labels), plain(4 * images, labels))
    with pytest.raises(ValueError, match=r"input_scale is 0\.0: it must be positive"):
        SNGAN(input_scale=0.0)


def test_a_class_has_its_own_scale_and_shift_and_shares_mix_them() -> None:
    norm = ClassBatchNorm(4, 3).eval()
    nn.init.normal_(norm.affine.weight)
    x, latents = torch.randn(3, 4, 5, 5), torch.randn(3, 6)  # which do not move it
    out = norm(x, torch.arange(3), latents)
    normed = x / (1 + 1e-5) ** 0.5
    for label in range(3):
        scale, shift = norm.affine.weight[label].chunk(2)
        expected = normed[label] * scale[:, None, None] + shift[:, None, None]
        torch.testing.assert_close(out[label], expected)
    torch.testing.assert_close(norm(x, torch.eye(3), latents), out)
    half = norm(x[:1], torch.tensor([[0.5, 0.5, 0.0]]), latents[:1])
    ends = [norm(x[:1], torch.tensor([label]), latents[:1]) for label in (0, 1)]
    torch.testing.assert_close(half, (ends[0] + ends[1]) / 2)


def test_latents_move_the_scale_and_shift_with_the_class() -> None:
    torch.manual_seed(0)
    norm, plain = ClassBatchNorm(4, 3, 6).eval(), ClassBatchNorm(4, 3).eval()
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    plain.load_state_dict(norm.state_dict(), strict=False)
    x, latents = torch.randn(3, 4, 5, 5), torch.randn(3, 6)
    labels = torch.arange(3)
    scale, shift = norm.modulation(latents)[:, :, None, None].chunk(2, dim=1)
    # The class's own and the latents' add up.
    moved = x / (1 + 1e-5) ** 0.5 * scale + shift
    torch.testing.assert_close(norm(x, labels, latents), plain(x, labels, latents) + moved)


def test_self_modulation_starts_small_and_reaches_every_block() -> None:
    torch.manual_seed(0)
    generator = Generator(10, 1, 28, 64, 8, 2, self_modulation=True)
    labels = torch.arange(100) % 10
    moved: list[torch.Tensor] = []
    for module in generator.modules():
        if isinstance(module, ClassBatchNorm):
            module.modulation.register_forward_hook(lambda m, i, o: moved.append(o.detach()))
    generator(torch.randn(100, 64), labels).square().mean().backward()
    assert len(moved) == 4
    assert all(0.1 < amount.std() < 0.22 for amount in moved)
    assert all(p.grad is not None and p.grad.any() for p in generator.parameters())
    plain = Generator(10, 1, 28, 64, 8, 2)
    extra = set(generator.state_dict()) - set(plain.state_dict())
    assert all(".modulation." in name for name in extra)
    assert len(extra) == 8


@pytest.mark.parametrize("self_modulation", [True, False])
def test_a_class_has_latents_of_its_own(self_modulation: bool) -> None:
    torch.manual_seed(0)
    options = {"self_modulation": self_modulation, "class_latents": True}
    generator = Generator(3, 1, 8, 16, 8, 1, **options).eval()
    latents, labels = torch.randn(2, 16), torch.tensor([0, 2])
    # In the beginning a class is no more than a name,
    first, second = (generator(latents, torch.full((2,), label)) for label in (0, 1))
    torch.testing.assert_close(first, second)
    torch.manual_seed(0)
    plain = Generator(3, 1, 8, 16, 8, 1, self_modulation=self_modulation).eval()
    torch.testing.assert_close(first, plain(latents, torch.zeros(2, dtype=torch.long)))
    assert len(generator._entries()) == (3 if self_modulation else 1)
    # and what one of them learns moves no other.
    before = generator(latents, labels).detach()
    with torch.no_grad():
        for layer in generator._entries():
            layer.weight[:, 32:] += 0.5
    after = generator(latents, labels).detach()
    torch.testing.assert_close(before[0], after[0])
    assert (before[1] - after[1]).abs().max() > 0.01
    torch.testing.assert_close(generator(latents, torch.eye(3)[labels]), after)


def test_coarse_blocks_work_at_the_first_resolution() -> None:
    torch.manual_seed(0)
    generator = Generator(3, 1, 8, 16, 8, 1, self_modulation=True, coarse_blocks=2).eval()
    seen = []
    for block in generator.blocks:
        block.register_forward_hook(lambda _, given, out: seen.append((given[0], out)))
    latents, labels = torch.randn(2, 16), torch.tensor([0, 2])
    images = generator(latents, labels)
    assert images.shape == (2, 1, 8, 8)
    assert [out.shape[-1] for _, out in seen] == [4, 4, 8]
    # Residual: where a block's last convolution gives nothing, what enters leaves.
    with torch.no_grad():
        for parameter in generator.blocks[0].conv2.parameters():
            parameter.zero_()
    seen.clear()
    changed = generator(latents, labels)
    assert torch.equal(*seen[0])
    assert not torch.equal(*seen[1])
    assert not torch.allclose(images, changed)
    # Classes and latents enter these blocks as they do the others.
    class_wide = Generator(3, 1, 8, 16, 8, 1, True, class_latents=True, coarse_blocks=2)
    assert len(class_wide._entries()) == 1 + 2 * 3
    with pytest.raises(ValueError, match="coarse_blocks is -1: it cannot be negative"):
        Generator(coarse_blocks=-1)


def test_the_last_block_may_have_more_features() -> None:
    network = Discriminator(width=8, feature_size=24)
    assert [block.shortcut.out_channels for block in network.blocks] == [8, 16, 24]
    assert network.linear.in_features == network.embed.embedding_dim == 24
    assert [b.shortcut.out_channels for b in Discriminator(width=8).blocks] == [8, 16, 16]
    assert network(torch.randn(2, 1, 28, 28), torch.arange(2)).shape == (2,)


@pytest.mark.parametrize(("classes", "size", "blocks"), [(10, 28, 2), (1, 28, 2), (5, 32, 3)])
def test_shapes_and_range(classes: int, size: int, blocks: int) -> None:
    generator = Generator(classes, 3, size, 16, 8, blocks)
    discriminator = Discriminator(classes, 3, 8, blocks)
    labels = torch.arange(4) % classes
    images = generator(torch.randn(4, 16), labels)
    assert images.shape == (4, 3, size, size)
    assert images.abs().max() < 1
    assert discriminator(images, labels).shape == (4,)


def test_pixels_are_not_rounded_to_half_precision() -> None:
    labels = torch.arange(4)
    with torch.autocast("cpu", torch.bfloat16):
        images = Generator(4, 3, 16, 8, 8, 2)(torch.randn(4, 8), labels)
    assert images.dtype == torch.float32
    assert (images != images.bfloat16()).float().mean() > 0.9
    half = Generator(4, 3, 16, 8, 8, 2).bfloat16()
    assert half(torch.randn(4, 8).bfloat16(), labels).isfinite().all()


def test_the_score_depends_on_the_class() -> None:
    network, images = Discriminator(10, width=8).eval(), torch.randn(4, 1, 28, 28)
    first = network(images, torch.zeros(4, dtype=torch.long))
    second = network(images, torch.ones(4, dtype=torch.long))
    assert not torch.allclose(first, second)
    both = network(images, torch.tensor([[0, 1]] * 4))
    torch.testing.assert_close(both, torch.stack([first, second], dim=1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 30}, "image_size is 30: give a multiple of 4"),
        ({"latent_size": 0}, "latent_size is 0"),
        ({"num_classes": 0}, "num_classes is 0: a conditional GAN needs at least 1"),
        ({"feature_size": 0}, "feature_size is 0"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SNGAN(**arguments)
