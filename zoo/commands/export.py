"""``python -m zoo export --weights X``: a trained network as a file that runs elsewhere."""

from __future__ import annotations

from pathlib import Path

from zoo.core.options import Parser
from zoo.errors import UserError

PARTS = ("preprocessing", "probabilities")


def main(arguments: list[str]) -> int:
    parser = Parser(
        "export",
        "Write a trained network as a file that runs without this project. The file is run on real "
        "data and compared with the network; a file that computes something else is not kept.",
    )
    parser.add_argument(
        "--weights", required=True, metavar="X", help="a checkpoint's name, folder or .ckpt file"
    )
    parser.add_argument(
        "--format",
        default="onnx",
        choices=["onnx", "torch-export", "aoti", "safetensors"],
        help="format of the file; onnx by default",
    )
    parser.add_argument(
        "--quantize", default=None, choices=["int8"], help="int8 weights and activations (onnx)"
    )
    parser.add_argument(
        "--with",
        dest="parts",
        default="",
        metavar="PARTS",
        help="preprocessing (takes uint8 images of any size), probabilities (gives them in place "
        "of logits), or both, separated by a comma",
    )
    parser.add_argument(
        "--out", type=Path, default=None, metavar="FILE", help="by default NAME.SUFFIX"
    )
    options = parser.parse_args(arguments)
    parts = [part for part in options.parts.split(",") if part]
    if unknown := sorted(set(parts) - set(PARTS)):
        raise UserError(f"--with {unknown[0]}: choose from {', '.join(PARTS)}")

    from zoo.checkpoints.export import SUFFIXES, ExportError, export
    from zoo.checkpoints.load import load
    from zoo.checkpoints.recorded import data_of, name_of

    task = load(options.weights)
    file = options.out or Path(name_of(options.weights) + SUFFIXES[options.format])
    try:
        result = export(
            task,
            data_of(options.weights),
            file,
            options.format,
            quantize=options.quantize,
            preprocessing="preprocessing" in parts,
            probabilities="probabilities" in parts,
        )
    except ExportError as error:
        print(error)
        return 1
    takes = ", ".join(f"{name} {shape}" for name, shape in result.inputs.items())
    print(f"{result.file}: {result.file.stat().st_size / 1e6:.2f} MB, {takes} to {result.output}")
    print(f"largest difference from the network at batches of 1, 7 and 64: {result.difference:.1e}")
    if result.samples is not None:
        print(f"same answer: {result.agreed:,} of {result.samples:,} ({result.data})")
    return 0
