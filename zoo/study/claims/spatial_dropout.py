"""Dropout on feature maps: of elements, of channels, of whole branches; on classes and pixels."""

from __future__ import annotations

from statistics import mean
from typing import Any

import torch
from torch import nn

from zoo.data.digit_masks import DigitMasks
from zoo.data.digits import Digits
from zoo.networks.convnet import ConvNet
from zoo.networks.preact_resnet import PreActResNet
from zoo.networks.unet import UNet
from zoo.study.claims.base import Claim, Finding, Form, Numbers, alike, larger, signed
from zoo.study.claims.fits import fit_once, replace_dropout
from zoo.study.fitting import build, train
from zoo.study.pictures import WIDTH, draw_points, new_figure
from zoo.study.verdicts import joined, judge, standard_error
from zoo.tasks.segmenter import Segmenter

RATE = 0.2
LITTLE = 0.01  # of accuracy or IoU
HELD_OUT = 1137  # few images to train on, so that there is something to regularize
KINDS: dict[str, Any] = {
    "nothing": nn.Identity,
    "element-wise": lambda: nn.Dropout(RATE),
    "spatial": lambda: nn.Dropout2d(RATE),
}
# Stochastic depth drops branches, so it is tried in a residual network, against the same without.
PATHS = {"residual, nothing": 0.0, "residual, stochastic depth": RATE}


def with_dropout(network: nn.Module, kind: str) -> nn.Module:
    """The network with each of its spatial dropouts replaced by the kind, at the study's rate."""
    return replace_dropout(network, lambda _: KINDS[kind]())


def few_digits() -> Digits:
    return Digits(32, validation_size=HELD_OUT, shift=0)


def measure(form: Form) -> Numbers:
    epochs = {"classes": 40, "pixels": 48} if form.quick else {"classes": 120, "pixels": 200}
    accuracy: dict[str, list[float]] = {}
    iou: dict[str, list[float]] = {}
    for kind in KINDS:
        accuracy[kind], iou[kind] = [], []
        for seed in range(form.seeds):
            network = build(
                seed, ConvNet, batch_norm=False, spatial_drop_rate=RATE, spatial="every"
            )
            network = with_dropout(network, kind)
            fitted = fit_once(network, few_digits(), epochs=epochs["classes"], seed=seed)
            accuracy[kind].append(fitted.final("val/accuracy"))
            torch.manual_seed(seed)
            unet = with_dropout(UNet(11, in_channels=1, width=16, depth=2), kind)
            task = Segmenter(unet, lr=3e-3, weight_decay=0.0, schedule="constant", warmup=0.0)
            masks = DigitMasks(16, validation_size=HELD_OUT, shift=0, image_size=8)
            # A U-Net tells ink from ground at once, and one digit from another late.
            passes = epochs["pixels"]
            segmented = train(task, masks, epochs=passes, seed=seed, check_val_every_n_epoch=passes)
            iou[kind].append(segmented.final("val/iou"))
    for name, rate in PATHS.items():
        accuracy[name] = []
        for seed in range(form.seeds):
            network = build(
                seed, PreActResNet, in_channels=1, layers=(2, 2), width=16, drop_path_rate=rate
            )
            fitted = fit_once(network, few_digits(), epochs=epochs["classes"], seed=seed)
            accuracy[name].append(fitted.final("val/accuracy"))
    return {"accuracy": accuracy, "iou": iou, "epochs": epochs}


def judge_all(numbers: Numbers) -> list[Finding]:
    accuracy, iou = numbers["accuracy"], numbers["iou"]
    on_pixels = larger(
        "It does on segmentation.",
        "IoU, spatial less nothing",
        iou["spatial"],
        iou["nothing"],
    )
    return [
        alike(
            f"Element-wise dropout on feature maps does little (less than {LITTLE}).",
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
            "Stochastic depth does something.",
            "validation accuracy of a residual network, stochastic depth less nothing",
            accuracy["residual, stochastic depth"],
            accuracy["residual, nothing"],
        ),
        on_pixels,
        _most(numbers, on_pixels),
    ]


def _most(numbers: Numbers, on_pixels: Finding) -> Finding:
    """That spatial dropout gains on segmentation, and more than on classification."""
    accuracy, iou = numbers["accuracy"], numbers["iou"]
    pairs = zip(
        iou["spatial"], iou["nothing"], accuracy["spatial"], accuracy["nothing"], strict=True
    )
    most = [segmented - none - (classified - plain) for segmented, none, classified, plain in pairs]
    found = larger(
        "And most there (which asks for a gain there).",
        "gain of IoU less gain of accuracy",
        most,
        [0.0] * len(most),
    )
    verdict = joined([judge(mean(most), standard_error(most)), on_pixels.verdict])
    why = "" if verdict == found.verdict else "There is no gain on segmentation to be the most."
    return Finding(
        found.says, found.number, found.value, found.low, found.high, verdict, found.why or why
    )


def draw(numbers: Numbers) -> Any:
    figure, axes = new_figure(1, 2, WIDTH, 4.0)
    epochs, accuracy, iou = numbers["epochs"], numbers["accuracy"], numbers["iou"]
    title = "classes, {classes} epochs: higher is better".format(**epochs)
    draw_points(axes[0, 0], accuracy, "validation accuracy", title)
    title = "pixels, {pixels} epochs: higher is better".format(**epochs)
    draw_points(axes[0, 1], iou, "validation IoU of a U-Net", title, accuracy)
    return figure


def message(numbers: Numbers) -> str:
    accuracy, iou = numbers["accuracy"], numbers["iou"]

    def gain(found: dict[str, list[float]], kind: str, without: str) -> str:
        return signed(mean(found[kind]) - mean(found[without]), 3)

    depth = gain(accuracy, "residual, stochastic depth", "residual, nothing")
    return (
        f"Element-wise dropout on maps changes the accuracy by "
        f"{gain(accuracy, 'element-wise', 'nothing')}, spatial by "
        f"{gain(accuracy, 'spatial', 'nothing')} (IoU {gain(iou, 'spatial', 'nothing')}), "
        f"stochastic depth by {depth}"
    )


CLAIM = Claim(
    "spatial-dropout",
    "Element-wise dropout on feature maps does little, because neighbors correlate; spatial "
    "dropout and stochastic depth do something, on segmentation most.",
    measure,
    judge_all,
    draw,
    message,
)
