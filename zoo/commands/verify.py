"""``python -m zoo verify [NAME …]``: checksums, golden outputs and stated figures."""

from __future__ import annotations

from zoo.core.options import Parser
from zoo.core.text import counted


def main(arguments: list[str]) -> int:
    parser = Parser(
        "verify", "Check every file's sha256 and compare the outputs with the stored ones."
    )
    parser.add_argument("names", nargs="*", help="checkpoints, by name or folder; all by default")
    parser.add_argument(
        "--metrics",
        action="store_true",
        help="measure every number of the cards again, on the data; takes minutes per checkpoint",
    )
    options = parser.parse_args(arguments)

    from zoo.checkpoints import store

    altered = False
    for name in options.names or store.names():
        difference = golden_difference(name)
        print(f"{name}: checksums match, outputs within {difference:.1e} of the stored ones")
        if options.metrics:
            altered |= compare_figures(name)
    return int(altered)


def compare_figures(name: str) -> bool:
    """Prints how a checkpoint's stated figures compare with those measured now.

    Returns:
        Whether one of them is another.
    """
    from zoo.checkpoints import store
    from zoo.checkpoints.load import load
    from zoo.checkpoints.recorded import data_of
    from zoo.evaluation.stated import STATED, differ, figures, measure

    config = store.read_config(store.folder_of(name))
    stated = figures({key: config[key] for key in STATED if key in config})
    measured = figures(measure(load(name), data_of(name)))
    both = [key for key in stated if key in measured]
    wrong = [key for key in both if differ(stated[key], measured[key])]
    for key in wrong:
        print(f"{name}: {key} is stated as {stated[key]} and measured as {measured[key]}")
    right, total = len(both) - len(wrong), counted(len(both), "figure")
    print(f"{name}: {right:,} of {total} measured as stated")
    if missing := [key for key in stated if key not in measured]:
        print(f"{name}: not measured: {', '.join(missing)}")
    print(f"{name}: not measured, of training: run, seeds, global_step")
    return bool(wrong)


def golden_difference(name: str) -> float:
    """Computes the largest difference between a checkpoint's outputs now and the stored ones.

    Raises:
        UserError: a file is altered, or the difference is more than rounding explains.
    """
    import torch

    from zoo.checkpoints import store
    from zoo.checkpoints.load import load
    from zoo.errors import UserError

    config = store.verify(store.folder_of(name))
    task = load(name)
    now, stored = torch.tensor(store.golden_outputs(task)), torch.tensor(config.get("golden", []))
    if now.shape != stored.shape:
        raise UserError(f"{name}: {store.CONFIG} has no stored outputs of this network's shape")
    difference = float((now - stored).abs().max())
    # Another machine's convolutions sum in another order.
    if not difference < 1e-3:
        raise UserError(f"{name}: outputs differ from the stored ones by {difference:.3g}")
    return difference
