"""``python -m zoo verify [NAME …]``: checksums and golden outputs of shipped checkpoints."""

from __future__ import annotations

from zoo.commands import Parser


def main(arguments: list[str]) -> int:
    parser = Parser(
        "verify", "Check every file's sha256 and compare the outputs with the stored ones."
    )
    parser.add_argument("names", nargs="*", help="checkpoints, by name or folder; all by default")
    options = parser.parse_args(arguments)

    from zoo.checkpoints import store

    for name in options.names or store.names():
        difference = golden_difference(name)
        print(f"{name}: checksums match, outputs within {difference:.1e} of the stored ones")
    return 0


def golden_difference(name: str) -> float:
    """The largest difference between a checkpoint's outputs now and the stored ones.

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
        raise UserError(f"{name}: {store.CONFIG} has no golden outputs of this network's shape")
    difference = float((now - stored).abs().max())
    # Another machine's convolutions sum in another order.
    if not difference < 1e-3:
        raise UserError(f"{name}: outputs differ from the stored ones by {difference:.3g}")
    return difference
