"""``python -m zoo compare RUN RUN …``: runs side by side, their settings, results and curves."""

from __future__ import annotations

from pathlib import Path

from zoo.core.options import Parser
from zoo.errors import UserError


def main(arguments: list[str]) -> int:
    parser = Parser(
        "compare",
        "Show where runs differ in settings and results, and draw their curves together. Runs "
        "that differ in their seed or their fold (data.fold) alone are averaged.",
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="folders, runs/RECIPE/VERSION"
    )
    parser.add_argument(
        "--to",
        type=Path,
        default=Path("compare.png"),
        help="file of the picture, a PNG (default: compare.png)",
    )
    options = parser.parse_args(arguments)

    from zoo.core.pictures import save_figure
    from zoo.study.compare import compared
    from zoo.study.pictures import draw_together
    from zoo.study.runs import grouped, read_run

    if options.to.suffix.lower() != ".png":
        raise UserError(f"--to {options.to}: the picture is a PNG: give a name that ends in .png")
    once = {path.resolve(): path for path in options.runs}  # a run is no repetition of itself
    groups = grouped(read_run(path) for path in once.values())
    print(compared(groups))
    title = " against ".join(groups) if len(groups) < 4 else f"{len(groups)} runs"
    save_figure(draw_together(groups, title), options.to)
    print(f"\ncurves: {options.to}")
    return 0
