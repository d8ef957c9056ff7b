"""Exported files against eager, samples/s at batches of 1 and 64; loading, cold and warm.

Every shipped network as an ONNX file (ONNX Runtime) and compiled ahead of time (AOTInductor), in
turns with the network itself in evaluation mode, on real samples. Loading is ``zoo.load`` and
``timm.create_model(…, checkpoint_path=…)`` of a network of about the same size from a local file:
cold is a process of its own, imports included; warm is the second load within a process.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch._inductor import aoti_load_package

import zoo
from tests.benchmarks.turns import medians
from zoo import registry
from zoo.checkpoints import store
from zoo.checkpoints.export import ExportError, export, run_onnx
from zoo.checkpoints.recorded import data_of

ROUNDS = 15
PEER = "resnet10t"  # of timm, 5.4 M parameters

COLD = {
    "zoo.load('resnet_fmnist')": "import zoo; zoo.load('resnet_fmnist')",
    f"timm {PEER}": "import sys, timm; timm.create_model('resnet10t', checkpoint_path=sys.argv[1])",
}


def load_aoti(file: Path) -> Any:
    return aoti_load_package(str(file))


def speed(name: str, folder: Path) -> None:
    """Prints samples/s of one checkpoint: images, or texts of the network's context."""
    task, data = zoo.load(name), data_of(name)
    entry = registry.find(registry.TASKS, type(task).__name__, "task")
    served = registry.load(entry.serve)(task, data, False, False)
    runs: dict[str, Any] = {"eager": served.module.eval()}
    for format, end, load in (("onnx", "onnx", run_onnx), ("aoti", "pt2", load_aoti)):
        try:
            runs[format] = load(export(task, data, folder / f"{name}.{end}", format).file)
        except ExportError as error:
            print(f"{name}: {error}")
    with torch.inference_mode():
        for batch in (1, 64):
            inputs = served.real(batch)
            calls = {who: partial(run, *inputs) for who, run in runs.items()}
            found = dict(zip(calls, (batch / each for each in medians(calls, ROUNDS)), strict=True))
            rates = ", ".join(f"{who} {rate:,.0f}" for who, rate in found.items())
            ratios = "".join(
                f"; {who} over eager {rate / found['eager']:.2f}"
                for who, rate in found.items()
                if who != "eager"
            )
            print(f"{name}, batch {batch}: samples/s {rates}{ratios}", flush=True)


def loading(folder: Path) -> None:
    """Prints the seconds that loading takes."""
    file = folder / "peer.safetensors"
    save_file(timm.create_model(PEER).state_dict(), file)
    calls = {
        who: lambda code=code: subprocess.run([sys.executable, "-c", code, file], check=True)
        for who, code in COLD.items()
    }
    cold = medians(calls, 3)
    warm = medians(
        {
            "zoo": lambda: zoo.load("resnet_fmnist"),
            "timm": lambda: timm.create_model(PEER, checkpoint_path=str(file)),
        },
        ROUNDS,
    )
    for who, first, again in zip(calls, cold, warm, strict=True):
        print(f"{who}: cold {first:.2f} s, warm {1000 * again:.1f} ms")


def main() -> None:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        loading(Path(folder))
        for name in sys.argv[1:] or store.names():
            speed(name, Path(folder))


if __name__ == "__main__":
    main()
