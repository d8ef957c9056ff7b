"""50 MC dropout samples of timm's resnet18 with a dropped head, against one forward and peers.

Then an ensemble of five resnet18, at once and one after another.

torch-uncertainty, 0.13 or later, is compared where it is installed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from unittest import mock

import timm
import torch

import zoo
from zoo.diagnostics import mc_dropout as module

ROUNDS, SAMPLES, MEMBERS = 5, 50, 5


def main() -> None:
    torch.manual_seed(0)
    model = timm.create_model("resnet18", drop_rate=0.3, num_classes=10).eval()
    images = torch.randn(32, 3, 128, 128)

    def forward() -> None:
        with torch.inference_mode():
            model(images)

    def naive() -> None:
        model.training = True  # timm's head drops by the mode of the whole model's own flag
        with torch.inference_mode():
            torch.stack([model(images).softmax(1) for _ in range(SAMPLES)]).mean(0)
        model.training = False

    runs: dict[str, Callable[[], object]] = {
        "one forward": forward,
        f"zoo.mc_dropout, {SAMPLES} samples": lambda: zoo.mc_dropout(model, images, SAMPLES),
        f"a plain loop, {SAMPLES} samples": naive,
    }
    try:
        from torch_uncertainty.methods import mc_dropout
    except ImportError:
        print("torch-uncertainty is not installed: not compared")
    else:
        # It finds dropout modules only, so it is given one: the same network, dropped by a module.
        peer = timm.create_model("resnet18", num_classes=10)
        peer.load_state_dict(model.state_dict())
        peer.fc = torch.nn.Sequential(torch.nn.Dropout(0.3), peer.fc)
        wrapped = mc_dropout(peer, num_estimators=SAMPLES, last_layer=True, on_batch=False).eval()

        def uncertainty() -> None:
            with torch.inference_mode():
                wrapped(images)

        runs[f"torch-uncertainty, {SAMPLES} samples"] = uncertainty
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(ROUNDS + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if turn >= 1:
                times[name].append(time.perf_counter() - start)
    one = statistics.median(times["one forward"])
    for name, measured in times.items():
        median = statistics.median(measured)
        print(f"{name:34} {1000 * median:8.1f} ms, {median / one:6.2f} forwards")
    compare_ensembles()


def compare_ensembles() -> None:
    """An ensemble one network after another, and at once by vmap over stacked weights."""
    torch.manual_seed(0)
    members = [timm.create_model("resnet18", num_classes=10).eval() for _ in range(MEMBERS)]
    images = torch.randn(32, 3, 128, 128)
    times: dict[str, list[float]] = {"one after another": [], "at once": []}
    for turn in range(ROUNDS + 1):
        # What is no device's name lets none stack.
        for name, device in zip(times, ("none", "cpu"), strict=True):
            with mock.patch.object(module, "STACKS", device):
                start = time.perf_counter()
                zoo.ensemble(members, images)
            if turn >= 1:
                times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(measured) for name, measured in times.items()}
    for name, median in medians.items():
        ratio = median / medians["one after another"]
        print(f"ensemble of {MEMBERS}, {name:19} {1000 * median:8.1f} ms, {ratio:.2f}")


if __name__ == "__main__":
    main()
