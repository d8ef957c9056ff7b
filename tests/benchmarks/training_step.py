"""One training step of our ResNet against torchvision's of the same shape, in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock
from torchvision.models.resnet import ResNet as TorchvisionResNet

from zoo import recipes
from zoo.networks import ResNet

ROUNDS = 12
RECIPE = recipes.resolve("resnet_fmnist")
ARGS = RECIPE["model"]["init_args"]["network"]["init_args"]
BATCH = RECIPE["data"]["init_args"]["batch_size"]


class Peer(TorchvisionResNet):
    """torchvision's ResNet in the recipe's shape, as its users patch it for small images."""

    def __init__(self) -> None:
        super().__init__(BasicBlock, [1, 1, 1, 1])
        self.inplanes = ARGS["width"]
        self.conv1 = nn.Conv2d(1, self.inplanes, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(self.inplanes)
        self.maxpool = nn.Identity()
        for stage, depth in enumerate(ARGS["layers"]):
            channels = ARGS["width"] * 2**stage
            layer = self._make_layer(BasicBlock, channels, depth, stride=2 if stage else 1)
            setattr(self, f"layer{stage + 1}", layer)
        for stage in range(len(ARGS["layers"]), 4):
            setattr(self, f"layer{stage + 1}", nn.Identity())
        self.fc = nn.Linear(self.inplanes, 10)


def stepper(network: nn.Module, fast: bool) -> Callable[[], None]:
    torch.manual_seed(0)
    images, labels = torch.randn(BATCH, 1, 28, 28), torch.randint(0, 10, (BATCH,))
    if fast:
        network = network.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, nesterov=True)
    network.train()

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=fast):
            loss = F.cross_entropy(network(images).float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def main() -> None:
    ours = partial(ResNet, **ARGS)
    assert ours().state_dict().keys() == Peer().state_dict().keys()
    steps = {
        "torchvision, float32": stepper(Peer(), fast=False),
        "ours, float32": stepper(ours(), fast=False),
        "ours, bfloat16 + channels_last": stepper(ours(), fast=True),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(ROUNDS + 2):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if turn >= 2:
                times[name].append(time.perf_counter() - start)
    peer = statistics.median(times["torchvision, float32"])
    for name, measured in times.items():
        median = statistics.median(measured)
        print(f"{name:32} {1000 * median:7.0f} ms a step of {BATCH}, ratio {peer / median:.2f}")


if __name__ == "__main__":
    main()
