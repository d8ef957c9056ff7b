"""``python -m zoo embed FOLDER --weights X --out F.npz``: a vector for each image."""

from __future__ import annotations

import sys
from pathlib import Path

from zoo.commands import WEIGHTS_HELP
from zoo.commands.predict import add_reading_options, read
from zoo.core.files import written_whole
from zoo.core.options import Parser
from zoo.errors import UserError


def main(arguments: list[str]) -> int:
    parser = Parser(
        "embed",
        "Write the pooled features of images, the input of the network's "
        "classifier, to an .npz file: "
        "features (N, D) and files (N,). Exit code 1 where a file could not be read.",
    )
    parser.add_argument("paths", type=Path, nargs="+", metavar="FILE|FOLDER")
    parser.add_argument("--weights", required=True, help=WEIGHTS_HELP)
    parser.add_argument("--out", type=Path, required=True, metavar="F.npz")
    add_reading_options(parser)
    options = parser.parse_args(arguments)
    if options.batch_size < 1:
        raise UserError(f"--batch_size is {options.batch_size}: it must be at least 1")

    import numpy as np
    import torch

    from zoo.checkpoints.load import load
    from zoo.data.files import find_images
    from zoo.networks.features import pooled_features
    from zoo.tasks.image_classifier import ImageClassifier

    task = load(options.weights)
    if not isinstance(task, ImageClassifier):
        raise UserError(
            f"embed needs an image classifier, and the weights are a {type(task).__name__}"
        )
    features, names, unreadable = [], [], []
    files, _ = find_images(options.paths)
    for batch, images in read(task, files, options):
        unreadable += batch.unreadable.values()
        if images is not None:
            with torch.inference_mode():
                features.append(pooled_features(task.network, images).float().cpu())
            names += [str(files[index].path) for index in batch.indices]
    for reason in unreadable:
        print(f"not read: {reason}", file=sys.stderr)
    if not features:
        raise UserError("no image could be read: nothing is written")
    vectors = torch.cat(features).numpy()
    with written_whole(options.out) as partial, partial.open("wb") as stream:
        np.savez(stream, features=vectors, files=np.array(names))
    print(f"features: {len(vectors)} × {vectors.shape[1]}, {options.out}")
    return int(bool(unreadable))
