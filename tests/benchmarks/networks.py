"""A training step and a prediction of each network against timm's or torchvision's, in turns.

Same shape, same weights' size, same precision (float32); the ratio is the peer's time over ours,
so that 1.00 is as fast. Peak memory is of the activations of one training step, as torch's
profiler counts allocations on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable

import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from turns import medians, peak_bytes

from zoo import networks

ROUNDS, BATCH = 15, 8
PAIRS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], int]] = {
    "resnet50": (networks.resnet50, torchvision.models.resnet50, 128),
    "resnext50_32x4d": (networks.resnext50_32x4d, torchvision.models.resnext50_32x4d, 128),
    "densenet121": (networks.densenet121, torchvision.models.densenet121, 128),
    "efficientnet_b0": (
        networks.efficientnet_b0,
        lambda: timm.create_model("efficientnet_b0", drop_rate=0.2, drop_path_rate=0.2),
        128,
    ),
    "vit_tiny_patch16_224": (
        networks.vit_tiny_patch16_224,
        lambda: timm.create_model("vit_tiny_patch16_224"),
        224,
    ),
}


def runs(model: nn.Module, size: int) -> dict[str, Callable[[], None]]:
    torch.manual_seed(0)
    images, labels = torch.randn(BATCH, 3, size, size), torch.arange(BATCH)

    def train() -> None:
        model.train()
        F.cross_entropy(model(images), labels).backward()
        model.zero_grad()

    def predict() -> None:
        model.eval()
        with torch.inference_mode():
            model(images)

    return {"training step": train, "prediction": predict}


def main() -> None:
    for name, (make_ours, make_peer, size) in PAIRS.items():
        ours, peer = runs(make_ours(), size), runs(make_peer(), size)
        for kind in ours:
            mine, theirs = medians({"ours": ours[kind], "peer": peer[kind]}, ROUNDS)
            line = f"{name:22} {kind:14} ours {1000 * mine:6.0f} ms, ratio {theirs / mine:.2f}"
            if kind == "training step":
                memory = [peak_bytes(one[kind]) / 2**20 for one in (ours, peer)]
                line += f", peak {memory[0]:.0f} MiB against {memory[1]:.0f}"
            print(line, flush=True)


if __name__ == "__main__":
    main()
