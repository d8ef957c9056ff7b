"""``python -m zoo sample --recipe X``: generated text, or pictures of generated images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zoo.commands import add_weights_options, chosen_weights
from zoo.core.options import Parser
from zoo.errors import UserError


def main(arguments: list[str]) -> int:
    parser = Parser("sample", "Generate text with a language model, or images with a GAN.")
    add_weights_options(
        parser, "a recipe: its network, and its shipped weights unless others are given"
    )
    parser.add_argument("--seed", type=int, default=None, help="seed of the random numbers")
    parser.add_argument("--prompt", default=None, help="text: what to continue")
    parser.add_argument("--max_new_tokens", type=int, default=500, help="text: tokens to add")
    parser.add_argument(
        "--temperature",
        type=float,
        default=None,
        help="text: 0 always takes the most probable token; images: lower is more typical; by "
        "default the checkpoint's",
    )
    parser.add_argument(
        "--top_k", type=int, default=None, help="text: the k most probable tokens only"
    )
    parser.add_argument(
        "--top_p",
        type=float,
        default=None,
        help="text: the most probable tokens that add up to probability p",
    )
    parser.add_argument("--class", dest="label", default=None, help="images: of this class only")
    parser.add_argument("--images", type=int, default=10, help="images: number per class or row")
    parser.add_argument(
        "--interpolate",
        nargs=2,
        metavar=("CLASS", "CLASS"),
        default=None,
        help="images: interpolation between two classes, or within one",
    )
    parser.add_argument("--to", type=Path, default=None, help="folder of the pictures")
    options = parser.parse_args(arguments)

    from zoo.checkpoints.load import load
    from zoo.tasks.protocols import SamplesImages, StreamsText

    source = chosen_weights(options, "sample")
    stem = Path(options.recipe or source).stem
    task = load(source)
    if isinstance(task, SamplesImages):
        folder = options.to or Path("runs", stem, "samples")
        for picture in draw(task, stem, options, folder):
            print(f"picture: {picture}")
        return 0
    if not isinstance(task, StreamsText):
        raise UserError(
            f"{source}: {type(task).__name__} cannot generate samples; use a GAN or a language "
            "model"
        )
    prompt = "\n" if options.prompt is None else options.prompt
    made = task.stream(
        prompt,
        options.max_new_tokens,
        temperature=1.0 if options.temperature is None else options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        seed=options.seed,
    )
    print(prompt, end="", flush=True)
    for piece in made:
        print(piece, end="", flush=True)
    print()
    return 0


def draw(task: Any, stem: str, options: Any, folder: Path) -> list[Path]:
    """Draws the grid that the options ask for."""
    import torch

    from zoo.core import pictures

    if options.images < 1:
        raise UserError(f"--images is {options.images}: it must be at least 1")
    seed = 0 if options.seed is None else options.seed
    if not options.interpolate:
        picture = folder / "samples.png"
        words = None if options.label is None else [options.label]
        draw_samples(task, stem, picture, words, options.images, seed, options.temperature)
        return [picture]
    picture, steps = folder / "interpolation.png", max(2, options.images)
    first, second = options.interpolate
    seeds = range(seed, seed + 5)
    rows = [
        task.interpolate(first, second, steps, seed=number, temperature=options.temperature)
        for number in seeds
    ]
    words = [f"seed {number}" for number in seeds]
    title = f"{stem}: {first} to {second}"
    pictures.save_labeled(torch.cat(rows), steps, words, picture, title)
    return [picture]


def draw_samples(
    task: Any,
    name: str,
    picture: Path,
    words: list[str] | None = None,
    columns: int = 10,
    seed: int = 0,
    temperature: float | None = None,
) -> None:
    """Draws a row of samples of each class, with its name before it."""
    from zoo.core import pictures

    words = words or [str(label) for label in task.data_info["classes"]]
    labels = [word for word in words for _ in range(columns)]
    images = task.sample(labels, seed=seed, temperature=temperature)
    pictures.save_labeled(images, columns, words, picture, f"{name}, seed {seed}")
