"""Images a second: our batches in memory with the recipe's augmentation, against torchvision's
FashionMNIST with the same v2 transforms and a DataLoader. Needs ZOO_DATA."""

from __future__ import annotations

import os
import statistics
import time
from types import SimpleNamespace

import torch
from torch.utils.data import DataLoader
from torchvision import datasets
from torchvision.transforms import v2

from zoo import recipes
from zoo.data import FashionMNIST

SETTINGS = recipes.resolve("resnet_fmnist")["data"]["init_args"]
BATCH = SETTINGS["batch_size"]


class Cutout(torch.nn.Module):
    """One square with its center anywhere in the image, as the recipe has it."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if torch.rand(()) >= SETTINGS["cutout_probability"]:
            return image
        size = SETTINGS["cutout_size"]
        top, left = (int(torch.randint(0, 28, ())) - size // 2 for _ in range(2))
        image = image.clone()
        image[:, max(0, top) : max(0, top + size), max(0, left) : max(0, left + size)] = 0
        return image


def peer(workers: int) -> DataLoader:
    transform = v2.Compose(
        [
            v2.PILToTensor(),
            v2.RandomHorizontalFlip(),
            v2.RandomCrop(28, padding=SETTINGS["shift"]),
            Cutout(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(FashionMNIST.mean, FashionMNIST.std),
        ]
    )
    data = datasets.FashionMNIST(os.environ["ZOO_DATA"], train=True, transform=transform)
    return DataLoader(
        data, BATCH, shuffle=True, num_workers=workers, persistent_workers=bool(workers)
    )


def images_per_second(batches, transform, count: int) -> float:
    iterator = iter(batches)
    transform(next(iterator))  # workers start, caches warm
    seen, start = 0, time.perf_counter()
    for _ in range(count):
        images, _ = transform(next(iterator))
        seen += len(images)
    return seen / (time.perf_counter() - start)


def main() -> None:
    data = FashionMNIST(**{**SETTINGS, "fallback": None})
    data.setup("fit")
    # The parts of a trainer that the augmentation asks for.
    data.trainer = SimpleNamespace(  # type: ignore[assignment]
        training=True,
        global_rank=0,
        world_size=1,
        fit_loop=SimpleNamespace(total_batch_idx=0),
        strategy=SimpleNamespace(broadcast=lambda value: value),
    )

    def ours() -> float:
        return images_per_second(
            data.train_dataloader(), lambda batch: data.on_after_batch_transfer(batch, 0), 200
        )

    peers = {0: peer(0), 2: peer(2)}
    rates: dict[object, list[float]] = {"ours": [], 0: [], 2: []}
    for _ in range(3):  # in turns
        rates["ours"].append(ours())
        for workers, loader in peers.items():
            rates[workers].append(images_per_second(loader, lambda batch: batch, 60))
    own = statistics.median(rates["ours"])
    print(f"ours: {own:,.0f} images/s, {1000 * BATCH / own:.2f} ms a batch of {BATCH}")
    for workers in peers:
        rate = statistics.median(rates[workers])
        print(f"torchvision, {workers} workers: {rate:,.0f} images/s, ratio {own / rate:.1f}")


if __name__ == "__main__":
    main()
