"""Exported files against eager, images/s at batches of 1 and 64; loading, cold and warm.

Every shipped classifier as an ONNX file (ONNX Runtime) and compiled ahead of time (AOTInductor), in
turns with the network itself in evaluation mode. Loading is ``zoo.load`` and
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
from zoo.checkpoints import store
from zoo.checkpoints.export import export, run_onnx
from zoo.checkpoints.recorded import data_of

ROUNDS = 15
PEER = "resnet10t"  # of timm, 5.4 M parameters

COLD = {
    "zoo.load('resnet_fmnist')": "import zoo; zoo.load('resnet_fmnist')",
    f"timm {PEER}": "import sys, timm; timm.create_model('resnet10t', checkpoint_path=sys.argv[1])",
}


@torch.inference_mode()
def speed(name: str, folder: Path) -> None:
    """Prints images/s of one checkpoint."""
    with torch.inference_mode(mode=False):  # whose tensors cannot be exported
        task, data = zoo.load(name), data_of(name)
        files = {
            "onnx": export(task, data, folder / f"{name}.onnx").file,
            "aoti": export(task, data, folder / f"{name}.pt2", "aoti").file,
        }
    runs: dict[str, Any] = {
        "eager": task.network,
        "onnx": run_onnx(files["onnx"]),
        "aoti": aoti_load_package(str(files["aoti"])),
    }
    for batch in (1, 64):
        images = torch.randn(batch, *data.used.input_shape)
        calls = {who: partial(run, images) for who, run in runs.items()}
        found = dict(zip(calls, (batch / each for each in medians(calls, ROUNDS)), strict=True))
        rates = ", ".join(f"{who} {rate:,.0f}" for who, rate in found.items())
        print(
            f"{name}, batch {batch}: images/s {rates}; onnx over eager "
            f"{found['onnx'] / found['eager']:.2f}, aoti over eager "
            f"{found['aoti'] / found['eager']:.2f}",
            flush=True,
        )


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
        for name in store.names():
            if hasattr(zoo.load(name).network, "get_classifier"):
                speed(name, Path(folder))


if __name__ == "__main__":
    main()
