from __future__ import annotations

import pytest
import torch

from tests.conftest import needs_fashion_mnist
from zoo.data import FashionMNIST
from zoo.errors import UserError
from zoo.evaluation.generator import frechet, measure_samples, recall, temperatures


def test_the_frechet_distance_of_normal_features_is_that_of_the_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    one = torch.randn(20_000, 4, generator=generator)
    other = 2 * torch.randn(20_000, 4, generator=generator) + 1
    # |μ - μ'|² + tr(Σ + Σ' - 2 (Σ Σ')^½) = 4 · 1 + 4 · (1 + 4 - 2 · 2)
    assert frechet(one, other) == pytest.approx(8, rel=0.05)
    assert frechet(one, one) == pytest.approx(0, abs=1e-4)


def test_recall_is_the_share_of_real_modes_that_are_made() -> None:
    generator = torch.Generator().manual_seed(0)
    modes = torch.tensor([[0.0, 0.0], [50.0, 0.0], [0.0, 50.0], [50.0, 50.0]])
    real = modes[torch.arange(2000) % 4] + torch.randn(2000, 2, generator=generator)
    three = modes[torch.arange(2000) % 3] + torch.randn(2000, 2, generator=generator)
    assert recall(real, three) == pytest.approx(0.75, abs=0.03)
    assert recall(real, real) == 1


class RealImages:
    """A perfect generator: training images of the class asked for."""

    temperature = 0.8

    def __init__(self, data: FashionMNIST) -> None:
        data.setup("fit")
        self.images, self.labels = data._train
        self.data_info = data.describe()

    def sample(self, labels: torch.Tensor, seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        places = [(self.labels == label).nonzero()[:, 0] for label in range(10)]
        drawn = [
            places[label][torch.randint(len(places[label]), (), generator=generator)]
            for label in labels.tolist()
        ]
        return self.images[torch.stack(drawn)] / 255


@needs_fashion_mnist
def test_real_images_pass_for_real() -> None:
    data = FashionMNIST(fallback=None)
    data.plain = lambda split: _few(data, split)  # a few thousand are enough here
    judged = measure_samples(RealImages(data), data, "resnet_fmnist", count=1000)
    assert judged["agreement"] > 0.95
    assert set(judged["agreement_by_class"]) == set(data.classes)
    assert judged["frechet"] < 4 * judged["frechet_floor"]
    assert judged["recall"] > 0.5
    assert (judged["samples"], judged["temperature"]) == (1000, 0.8)
    assert len(judged["classifier"]["sha256"]) == 64


class NoisyImages(RealImages):
    """Of each class the more noise, the further a temperature is from the one it needs."""

    def __init__(self, data: FashionMNIST, needed: list[float]) -> None:
        super().__init__(data)
        self.needed = torch.tensor(needed)

    def sample(self, labels: torch.Tensor, seed: int, temperature: float) -> torch.Tensor:
        images = super().sample(labels, seed)
        away = (temperature - self.needed[labels]).abs()[:, None, None, None]
        noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
        return (images + away * noise).clamp(0, 1)


@needs_fashion_mnist
def test_each_class_is_given_the_temperature_that_it_needs() -> None:
    data = FashionMNIST(fallback=None)
    data.plain = lambda split: _few(data, split)
    needed = [1.0, 1.2, 0.8, 1.0, 0.8, 1.2, 1.0, 1.0, 0.8, 1.2]
    chosen = temperatures(
        NoisyImages(data, needed), data, "resnet_fmnist", (0.8, 1.0, 1.2), count=100
    )
    assert chosen == needed


def _few(data: FashionMNIST, split: str):
    images, labels = data._set(split)
    yield images[:2000], labels[:2000]


@needs_fashion_mnist
def test_a_reference_classifier_of_other_classes_is_refused() -> None:
    data = FashionMNIST(fallback=None)
    generator = RealImages(data)
    generator.data_info = {**generator.data_info, "classes": ["cat", "dog"]}
    with pytest.raises(UserError, match="resnet_fmnist has the classes"):
        measure_samples(generator, data, "resnet_fmnist", count=10)
