"""``python -m zoo info X``: parameters, multiply-adds, memory and throughput of a network."""

from __future__ import annotations

import json
import time
from typing import Any

from zoo.commands import WEIGHTS_HELP
from zoo.core.options import Parser
from zoo.errors import UserError

SECONDS = 1.0  # that the throughput is measured for, at least
MEGABYTE = 2**20


def main(arguments: list[str]) -> int:
    parser = Parser(
        "info",
        "Show a network's parameters, multiply-adds, memory, normalization and dropout layers, and "
        "its throughput on this machine.",
    )
    parser.add_argument("source", metavar="X", help=f"a recipe, or weights: {WEIGHTS_HELP}")
    parser.add_argument(
        "--batch_size", type=int, default=32, help="inputs per batch when throughput is measured"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, for scripts")
    options = parser.parse_args(arguments)
    if options.batch_size < 1:
        raise UserError(f"--batch_size is {options.batch_size}: it must be at least 1")
    network, inputs = _network(options.source)
    facts = describe(network, inputs, options.batch_size)
    if options.json:
        print(json.dumps(facts, indent=2))
    else:
        print("\n".join(_lines(options.source, facts)))
    return 0


def _network(source: str) -> tuple[Any, Any]:
    """A network in evaluation mode, and one input (1, …) of it."""
    import torch

    from zoo import recipes
    from zoo.checkpoints import store
    from zoo.checkpoints.load import load
    from zoo.checkpoints.source import TIMM, recipe_of
    from zoo.cli.building import from_recipe

    task: Any
    if source.startswith(TIMM):  # its weights are not needed for it
        from zoo.networks import timm_network

        network: Any = timm_network(source.removeprefix(TIMM))
        return network.eval(), torch.zeros(1, *network.pretrained_cfg["input_size"])
    if source in recipes.names() and source not in store.names():
        task, data = from_recipe(source)
        if not hasattr(data, "example_input"):
            raise UserError(f"{source}: its data do not say what the network takes")
        example = task.example_inputs(data)
        return task.network.eval(), tuple(part[:1] for part in example)
    task = load(source)
    if "input_shape" in task.data_info and not hasattr(task, "sample"):
        return task.network, torch.zeros(1, *task.data_info["input_shape"])
    length = getattr(task.network, "context_length", None)
    if length is not None:
        return task.network, torch.zeros(1, length, dtype=torch.long)
    if (recipe := recipe_of(source)) is None:
        raise UserError(
            f"{source}: {type(task).__name__}'s input is not known without its data: give its "
            "recipe's name"
        )
    _, data = from_recipe(recipe)
    return task.network, tuple(part[:1] for part in task.example_inputs(data))


def describe(network: Any, inputs: Any, batch_size: int) -> dict[str, Any]:
    """Describes a network in evaluation mode, as JSON values.

    Args:
        network: any module.
        inputs: one input (1, …) of it, or a tuple of its parts.
        batch_size: of the throughput.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from zoo.diagnostics.trace.recorder import record

    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    parameters = list(network.parameters())
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        network(*inputs)
    trace = record(network, tuple(part.repeat_interleave(2, 0) for part in inputs), mode="training")
    return {
        "network": type(network).__name__,
        "input": [list(part.shape) for part in inputs],
        "parameters": sum(p.numel() for p in parameters),
        # An addition and a multiplication count as two operations.
        "multiply_adds": counter.get_total_flops() // 2,
        "weights_mb": round(
            sum(t.numel() * t.element_size() for t in network.state_dict().values()) / MEGABYTE, 2
        ),
        "activations_mb": round(_kept_for_backward(network, inputs) / MEGABYTE, 2),
        "regularization": _placement(trace),
        "throughput": _throughput(network, inputs, batch_size),
    }


def _kept_for_backward(network: Any, inputs: tuple[Any, ...]) -> int:
    """Bytes that a training step keeps of one input between forward and backward."""
    import torch

    from zoo.core.modes import evaluating

    weights = {tensor.untyped_storage().data_ptr() for tensor in network.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor  # held by the graph, so that no storage is counted twice for another

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with evaluating(network), torch.enable_grad(), hooks:
        output = network(*inputs)
    del output
    return sum(kept.values())


def _placement(trace: Any) -> list[dict[str, Any]]:
    """Normalizations and dropouts in the order in which the data meet them."""
    from zoo.diagnostics.trace.operations import NORMS

    found = []
    for node in trace.nodes:
        if node.batch_norm is not None:
            kind = "InstanceNorm" if node.batch_norm.per_sample else "BatchNorm"
            found.append({"kind": kind, "module": node.batch_norm.holder})
        elif node.dropout is not None:
            kind = {"path": "stochastic depth"}.get(
                node.dropout.kind, f"{node.dropout.kind} dropout"
            )
            found.append({"kind": kind, "module": node.module, "rate": node.dropout.rate})
        elif node.op in NORMS:
            found.append({"kind": node.op, "module": node.module})
    return found


def _throughput(network: Any, inputs: tuple[Any, ...], batch_size: int) -> dict[str, Any]:
    import platform

    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    network.to(device)
    batch = tuple(part.repeat_interleave(batch_size, 0).to(device) for part in inputs)

    def run() -> None:
        network(*batch)
        if device == "cuda":
            torch.cuda.synchronize()

    with torch.inference_mode():
        run()  # the first forward chooses its kernels
        done, started = 0, time.perf_counter()
        while (passed := time.perf_counter() - started) < SECONDS or not done:
            run()
            done += batch_size
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor()
    return {
        "inputs_per_second": round(done / passed, 1),
        "batch_size": batch_size,
        "device": name or platform.machine(),
        "threads": torch.get_num_threads() if device == "cpu" else None,
    }


def _lines(source: str, facts: dict[str, Any]) -> list[str]:
    shapes = ", ".join(" × ".join(map(str, shape)) for shape in facts["input"])
    speed = facts["throughput"]
    lines = [
        f"{source}: {facts['network']}, input {shapes}",
        f"  parameters     {facts['parameters']:,}",
        f"  multiply-adds  {facts['multiply_adds']:,} of one input",
        f"  memory         weights {facts['weights_mb']} MiB; a training step keeps "
        f"{facts['activations_mb']} MiB of one input (float32)",
        f"  throughput     {speed['inputs_per_second']:,} inputs/s, batches of "
        f"{speed['batch_size']}, {speed['device']}"
        + (f", threads: {speed['threads']}" if speed["threads"] else ""),
        "",
        "normalization and dropout, in the order in which the data meet them:",
    ]
    for one in _runs(facts["regularization"]):
        lines.append(f"  {one}")
    if not facts["regularization"]:
        lines.append("  none")
    return lines


def _runs(placed: list[dict[str, Any]]) -> list[str]:
    """A line for each, neighbors of the same kind in one."""
    runs: list[tuple[str, list[str]]] = []
    for one in placed:
        rate = one.get("rate")
        kind = one["kind"] + (f" {rate:.3g}" if rate is not None else "")
        if runs and runs[-1][0] == kind:
            runs[-1][1].append(one["module"])
        else:
            runs.append((kind, [one["module"]]))
    width = max((len(kind) for kind, _ in runs), default=0)
    lines = []
    for kind, modules in runs:
        names = [name or "the network itself" for name in modules]
        shown = ", ".join(names) if len(names) < 4 else f"{names[0]} … {names[-1]}"
        lines.append(f"{kind:<{width}}  {shown}" + (f"  ({len(names)})" if names[1:] else ""))
    return lines
