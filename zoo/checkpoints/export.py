"""Exports networks to other formats; each file is run and compared with its network."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save
from safetensors.torch import save_file as save_safetensors
from torch import Tensor

from zoo import networks, registry
from zoo.checkpoints.served import Classifier, Served
from zoo.checkpoints.store import plain_state
from zoo.core.files import written_whole
from zoo.core.text import counted, first_line
from zoo.core.version import __version__
from zoo.errors import UserError

Format = Literal["onnx", "torch-export", "aoti", "safetensors"]
SUFFIXES: dict[str, str] = {
    "onnx": ".onnx",
    "torch-export": ".pt2",
    "aoti": ".pt2",
    "safetensors": ".safetensors",
}
BATCHES = (1, 7, 64)  # sizes that a file is run at
TOLERANCE = 1e-3  # the largest difference that another order of summation explains
QUANTIZED_AGREEMENT = 0.995  # of int8 files, on the test set; the others agree on everything
CALIBRATION_SAMPLES = 512  # that int8 ranges are measured on

Run = Callable[..., Tensor]


class ExportError(UserError):
    """Raised where an exported file does not compute what the network does; it is not kept."""


@dataclass(frozen=True)
class Exported:
    """A file and how it compares with the network.

    Args:
        file: its path.
        inputs: name to shape and type, ``(batch, 1, 28, 28) float32``.
        output: the output's name.
        difference: the largest at batches of 1, 7 and 64.
        agreed: samples whose largest output is the network's; None where that means nothing.
        samples: how many were compared so; None likewise.
        data: what they are.
    """

    file: Path
    inputs: dict[str, str]
    output: str
    difference: float
    agreed: int | None
    samples: int | None
    data: str


def export(
    task: Any,
    data: Any,
    to: Path,
    format: Format = "onnx",
    *,
    quantize: Literal["int8"] | None = None,
    preprocessing: bool = False,
    probabilities: bool = False,
) -> Exported:
    """Writes a task's network as a file of another format, and compares it with the network.

    The file takes batches of any size, and of a language model texts of any length up to its
    context. It is written under a temporary name, run at batches of 1, 7 and 64 real samples and on
    the whole test set, and kept only if it agrees with the network.

    Args:
        task: a trained task in evaluation mode, as ``zoo.load`` gives it.
        data: the data module of its data.
        to: the file.
        format: ``onnx`` (ONNX Runtime), ``torch-export`` (``torch.export.load``), ``aoti``
            (compiled ahead of time for this machine, ``torch._inductor.aoti_load_package``) or
            ``safetensors`` (the weights alone).
        quantize: ``int8`` weights and activations, for ``onnx``; ranges from validation images.
        preprocessing: the file takes uint8 images of any size, and resizes, crops and normalizes
            them itself, as prediction does.
        probabilities: the file gives probabilities, at the calibrated temperature where there is
            one, in place of logits.

    Returns:
        The file and how it compares.

    Raises:
        UserError: a combination that does not exist, or a package that is missing.
        ExportError: the network cannot be exported, or the file computes something else.
    """
    if format not in SUFFIXES:
        raise UserError(f"--format {format}: choose one of {', '.join(SUFFIXES)}")
    if quantize is not None and format != "onnx":
        raise UserError(f"--quantize {quantize} is for --format onnx, not {format}")
    if format == "safetensors" and (preprocessing or probabilities):
        raise UserError("--format safetensors holds weights alone: leave --with away")
    if format == "onnx":
        _require("onnx", "onnxscript", "onnxruntime")
    if format == "aoti":
        _require_compiler()
    entry = registry.find(registry.TASKS, type(task).__name__, "task")
    if entry.serve is None:
        raise UserError(f"{type(task).__name__} has no export: its registry entry names no serve")
    served: Served = registry.load(entry.serve)(task, data, preprocessing, probabilities)
    served.module.eval()
    facts = {
        "network": type(task.network).__name__,
        **served.facts,
        "weights_sha256": hashlib.sha256(save(plain_state(task.network))).hexdigest(),
        "zoo": __version__,
    }
    with written_whole(to) as partial, torch.no_grad():
        # The tools of two formats insist on the suffix.
        made = partial.with_name(f"{partial.name}{SUFFIXES[format]}")
        try:
            with _quiet():
                run = _WRITERS[format](served, made, facts, quantize)
            result = _compare(served, run, to, quantize)
            made.replace(partial)
        finally:
            made.unlink(missing_ok=True)
    return result


# -- formats ---------------------------------------------------------------------------------------


def _program(served: Served) -> torch.export.ExportedProgram:
    limits = {"length": served.facts.get("context_length")}
    dimensions = {
        name: torch.export.Dim(name, max=limits.get(name))
        for free in served.free.values()
        for name in free.values()
    }
    shapes = tuple(
        {place: dimensions[name] for place, name in served.free[key].items()}
        for key in served.inputs
    )
    try:
        return torch.export.export(
            served.module, tuple(served.inputs.values()), dynamic_shapes=shapes, strict=False
        )
    except Exception as error:
        raise ExportError(
            f"{type(served.module).__name__} cannot be exported by torch.export: "
            f"{first_line(error)}"
        ) from error


def _write_onnx(served: Served, file: Path, facts: dict[str, Any], quantize: str | None) -> Run:
    import onnx

    program = torch.onnx.export(
        _program(served),
        input_names=list(served.inputs),
        output_names=[served.output],
        dynamic_shapes=tuple(served.free.values()),  # for the names: else they are s0 and s1
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.save(str(file))
    if quantize:
        _quantize(served, file)
    model = onnx.load(str(file))
    for key, value in facts.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        model.metadata_props.add(key=key, value=text)
    onnx.save(model, str(file))
    return run_onnx(file)


def _quantize(served: Served, file: Path) -> None:
    """int8 in place, with ranges measured on samples of the validation set."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            samples = served.calibration(CALIBRATION_SAMPLES)
            self.batches = zip(*(torch.split(each, 32) for each in samples), strict=True)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.batches, None)
            if batch is None:
                return None
            names = served.inputs
            return {name: each.numpy() for name, each in zip(names, batch, strict=True)}

    prepared = file.with_name(f"{file.name}.prepared.onnx")
    try:
        quant_pre_process(str(file), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(file),
            Reader(),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            reduce_range=True,  # processors without VNNI add such products in 16 bits
        )
    finally:
        prepared.unlink(missing_ok=True)


def run_onnx(file: Path) -> Run:
    """Loads an ONNX file as a function of tensors, by ONNX Runtime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]

    def run(*inputs: Tensor) -> Tensor:
        given = {name: each.numpy() for name, each in zip(names, inputs, strict=True)}
        return torch.from_numpy(session.run(None, given)[0])

    return run


def _write_torch_export(
    served: Served, file: Path, facts: dict[str, Any], quantize: str | None
) -> Run:
    torch.export.save(
        _program(served), file, extra_files={"facts.json": json.dumps(facts, ensure_ascii=False)}
    )
    run: Run = torch.export.load(file).module()
    return run


def _write_aoti(served: Served, file: Path, facts: dict[str, Any], quantize: str | None) -> Run:
    from torch._inductor import aoti_compile_and_package, aoti_load_package

    texts = {key: json.dumps(value) for key, value in facts.items()}
    try:
        aoti_compile_and_package(
            _program(served),
            package_path=str(file),
            inductor_configs={"aot_inductor.metadata": texts},
        )
    except ExportError:
        raise
    except Exception as error:  # an operation that it does not know
        raise ExportError(f"the network cannot be compiled: {first_line(error)}") from error
    run: Run = aoti_load_package(str(file))
    return run


def _write_safetensors(
    served: Served, file: Path, facts: dict[str, Any], quantize: str | None
) -> Run:
    network = served.module.network if isinstance(served.module, Classifier) else served.module
    texts = {key: json.dumps(value, ensure_ascii=False) for key, value in facts.items()}
    save_safetensors(plain_state(network), file, metadata={"format": "pt", **texts})
    description = networks.describe(network)
    if description is None:
        raise UserError(f"{type(network).__name__} is not a network of the zoo's registry")
    twin = networks.build(description).eval()
    twin.load_state_dict(load_file(file))
    return twin


_WRITERS: dict[str, Callable[[Served, Path, dict[str, Any], str | None], Run]] = {
    "onnx": _write_onnx,
    "torch-export": _write_torch_export,
    "aoti": _write_aoti,
    "safetensors": _write_safetensors,
}


# -- comparison ------------------------------------------------------------------------------------


def _compare(served: Served, run: Run, file: Path, quantize: str | None) -> Exported:
    """Runs a file and its network on the same inputs.

    Raises:
        ExportError: it computes something else.
    """
    difference = 0.0
    for count in BATCHES:
        inputs = served.real(count)
        ours, theirs = served.module(*inputs), run(*inputs)
        if theirs.shape != ours.shape:
            raise ExportError(
                f"{file} was not written: for {counted(count, 'sample')} the file gives "
                f"{tuple(theirs.shape)}, and the network {tuple(ours.shape)}"
            )
        difference = max(difference, float((theirs - ours).abs().max()))
    if quantize is None and not difference <= TOLERANCE * max(1.0, float(ours.abs().max())):
        raise ExportError(
            f"{file} was not written: its outputs differ from the network's by {difference:.3g}"
        )
    agreed = samples = None
    if served.whole is not None:
        agreed = samples = 0
        for inputs in served.whole():
            same = served.module(*inputs).argmax(served.axis) == run(*inputs).argmax(served.axis)
            agreed, samples = agreed + int(same.sum()), samples + same.numel()
        least = QUANTIZED_AGREEMENT if quantize else 1.0
        if agreed < least * samples:
            raise ExportError(
                f"{file} was not written: it gives the network's answer for {agreed:,} of "
                f"{samples:,} ({served.data}); at least {least:.1%} is required"
            )
    shapes = {}
    for name, example in served.inputs.items():
        sizes = [served.free[name].get(place, size) for place, size in enumerate(example.shape)]
        kind = str(example.dtype).removeprefix("torch.")
        shapes[name] = f"({', '.join(map(str, sizes))}) {kind}"
    return Exported(file, shapes, served.output, difference, agreed, samples, served.data)


def _require(*packages: str) -> None:
    if missing := [package for package in packages if find_spec(package) is None]:
        raise UserError(
            f"--format onnx needs {', '.join(missing)}: pip install 'lightning-zoo[onnx]'"
        )


def _require_compiler() -> None:
    from torch._inductor import config

    names = [name for name in config.cpp.cxx if name]
    if not any(shutil.which(name) for name in names):
        raise UserError(
            f"--format aoti needs a C++ compiler, and {', '.join(names)} is none here: install "
            "g++, or name another by the environment variable CXX"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporters report their own progress and deprecations; a user can act on none of it."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
