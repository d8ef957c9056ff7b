"""What a run's devices are, and what they can do."""

from __future__ import annotations

from typing import Any

import torch


def imitates_bfloat16(kind: str) -> bool:
    """Returns whether a device emulates bfloat16 by float32, which is far slower than float32.

    A processor with AVX2 at most takes 9 to 13 times as long for a forward and backward of a
    recipe's network as in float32 (tests/benchmarks/precision.py).

    Args:
        kind: of device: ``cpu``, ``cuda``, or another of torch's.
    """
    if kind == "cuda":
        return not torch.cuda.is_bf16_supported(including_emulation=False)
    if kind == "cpu":
        if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
            return True
        # torch asks oneDNN by this name itself; it has no public one.
        return not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return False


def lacks_bf16(trainer: Any) -> bool:
    """Returns whether a run's device would only emulate bfloat16.

    Args:
        trainer: a recipe's, a mapping with ``accelerator``.
    """
    accelerator = trainer.get("accelerator", "auto")
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return imitates_bfloat16("cuda")
    if accelerator == "cpu" or (accelerator == "auto" and not torch.backends.mps.is_available()):
        return imitates_bfloat16("cpu")
    return False


def several_gpus(trainer: Any) -> bool:
    """Returns whether a run uses several GPUs, over all nodes: only then BatchNorm is synced."""
    if trainer.get("accelerator", "auto") not in ("auto", "gpu", "cuda"):
        return False
    if not torch.cuda.is_available():
        return False
    devices, nodes = trainer.get("devices", "auto"), int(trainer.get("num_nodes") or 1)
    if devices in ("auto", -1, "-1"):
        count = torch.cuda.device_count()
    elif isinstance(devices, list):
        count = len(devices)
    elif isinstance(devices, str) and "," in devices:
        count = len([device for device in devices.split(",") if device.strip()])
    else:
        count = int(devices)
    return count * nodes > 1


def several_cpus(trainer: Any) -> bool:
    """Returns whether a run uses several processes on CPUs."""
    if torch.cuda.is_available() and trainer.get("accelerator", "auto") != "cpu":
        return False
    devices = str(trainer.get("devices", "auto"))
    return int(devices) > 1 if devices.isdigit() else False
