"""What an audit costs over the two forwards that it makes, resnet50 at 224 × 224, in turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torchvision.models import resnet50

import zoo

ROUNDS = 12


def main() -> None:
    torch.manual_seed(0)
    model, images = resnet50(), torch.randn(2, 3, 224, 224)

    def forwards() -> None:
        with torch.no_grad():
            model.train()(images)
            model.eval()(images)

    runs: dict[str, Callable[[], object]] = {
        "two forwards": forwards,
        "zoo.audit": lambda: zoo.audit(model, images),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(ROUNDS + 2):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if turn >= 2:
                times[name].append(time.perf_counter() - start)
    plain, audited = (statistics.median(times[name]) for name in runs)
    print(f"two forwards of resnet50, 2 × 3 × 224 × 224: {1000 * plain:6.0f} ms")
    print(f"zoo.audit: {1000 * audited:6.0f} ms, ratio {audited / plain:.2f}")


if __name__ == "__main__":
    main()
