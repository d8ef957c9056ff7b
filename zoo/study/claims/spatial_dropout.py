"""Element-wise dropout on feature maps against spatial dropout, on classes and on pixels."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from zoo.data.digit_masks import DigitMasks
from zoo.data.digits import Digits
from zoo.networks.convnet import ConvNet
from zoo.networks.unet import UNet
from zoo.study.claims.base import Claim, Finding, Form, Numbers, alike, larger
from zoo.study.fitting import build, fit, train
from zoo.study.pictures import draw_points, new_figure
from zoo.tasks.segmenter import Segmenter

RATE = 0.2
LITTLE = 0.01  # of accuracy or IoU
HELD_OUT = 1137  # few images to train on, so that there is something to regularize
KINDS: dict[str, Any] = {"nothing": None, "element-wise": nn.Dropout, "spatial": nn.Dropout2d}


def with_dropout(network: nn.Module, kind: str) -> nn.Module:
    """The network with each of its spatial dropouts replaced by the kind, at the study's rate."""
    make = KINDS[kind]
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.Dropout2d):
            parent = network.get_submodule(name.rpartition(".")[0])
            layer = nn.Identity() if make is None else make(RATE)
            setattr(parent, name.rpartition(".")[2], layer)
    return network


def measure(form: Form) -> Numbers:
    epochs = {"classes": 15, "pixels": 48} if form.quick else {"classes": 60, "pixels": 200}
    accuracy: dict[str, list[float]] = {}
    iou: dict[str, list[float]] = {}
    for kind in KINDS:
        accuracy[kind], iou[kind] = [], []
        for seed in range(form.seeds):
            network = build(
                seed, ConvNet, batch_norm=False, spatial_drop_rate=RATE, spatial="every"
            )
            data = Digits(32, validation_size=HELD_OUT, shift=0)
            fitted = fit(with_dropout(network, kind), data, epochs=epochs["classes"], seed=seed)
            accuracy[kind].append(fitted.final("val/accuracy"))
            torch.manual_seed(seed)
            unet = with_dropout(UNet(11, in_channels=1, width=16, depth=2), kind)
            task = Segmenter(unet, lr=3e-3, weight_decay=0.0, schedule="constant", warmup=0.0)
            masks = DigitMasks(16, validation_size=HELD_OUT, shift=0, image_size=8)
            # A U-Net tells ink from ground at once, and one digit from another late.
            segmented = train(task, masks, epochs=epochs["pixels"], seed=seed)
            iou[kind].append(segmented.final("val/iou"))
    return {"accuracy": accuracy, "iou": iou, "epochs": epochs}


def judge_all(numbers: Numbers) -> list[Finding]:
    accuracy, iou = numbers["accuracy"], numbers["iou"]
    pairs = zip(
        iou["spatial"], iou["nothing"], accuracy["spatial"], accuracy["nothing"], strict=True
    )
    most = [segmented - none - (classified - plain) for segmented, none, classified, plain in pairs]
    return [
        alike(
            "Element-wise dropout on feature maps does little (less than 0.01).",
            "validation accuracy, element-wise less nothing",
            accuracy["element-wise"],
            accuracy["nothing"],
            LITTLE,
        ),
        larger(
            "Spatial dropout does something.",
            "validation accuracy, spatial less nothing",
            accuracy["spatial"],
            accuracy["nothing"],
        ),
        larger(
            "It does on segmentation.",
            "IoU, spatial less nothing",
            iou["spatial"],
            iou["nothing"],
        ),
        larger(
            "And most there.",
            "gain of IoU less gain of accuracy",
            most,
            [0.0] * len(most),
        ),
    ]


def draw(numbers: Numbers) -> Any:
    figure, axes = new_figure(1, 2, 12, 4.8)
    titles = {
        kind: f"after {epochs} epochs on 300 digits" for kind, epochs in numbers["epochs"].items()
    }
    accuracy, iou = numbers["accuracy"], numbers["iou"]
    draw_points(axes[0, 0], accuracy, "validation accuracy", f"classes, {titles['classes']}")
    draw_points(axes[0, 1], iou, "validation IoU", f"pixels, U-Net, {titles['pixels']}")
    return figure


CLAIM = Claim(
    "spatial-dropout",
    "Element-wise dropout on feature maps does little, because neighbors correlate; spatial "
    "dropout does, on segmentation most.",
    measure,
    judge_all,
    draw,
)
