"""``python -m zoo list``: the recipes, and what is measured of their shipped weights."""

from __future__ import annotations

import json
from collections.abc import Iterable

from zoo import recipes
from zoo.core.options import Parser


def main(arguments: list[str]) -> int:
    parser = Parser(
        "list", "Show every recipe, and what was measured of its shipped weights.", loads=False
    )
    parser.add_argument("--json", action="store_true", help="print one JSON array, for scripts")
    parser.add_argument(
        "--markdown",
        action="store_true",
        help="print the README's table of recipes that ship weights",
    )
    options = parser.parse_args(arguments)
    if options.markdown:
        print(table())
    elif options.json:
        print(json.dumps([entry.as_dict() for entry in recipes.entries()], indent=2))
    else:
        print("\n".join(lines()))
    return 0


def lines() -> Iterable[str]:
    """Lists the recipes in columns, for a terminal."""
    from zoo.checkpoints.card import form_of

    rows = [("RECIPE", "TRAINS", "DATA", "PARAMETERS", "MEASURED", "WEIGHTS")]
    for entry in recipes.entries():
        measured = "-"
        if entry.metric and entry.value is not None:
            measured = f"{entry.metric} {entry.value:{form_of(entry.metric)}}"
        rows.append(
            (
                entry.name,
                entry.trains,
                entry.data,
                f"{entry.parameters:,}" if entry.parameters else "-",
                measured,
                shipped(entry),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def shipped(entry: recipes.Entry) -> str:
    """States whether weights of a recipe's name ship, and which other recipe trained them."""
    if not entry.weights:
        return "-"
    return "shipped" if entry.trained_by == entry.name else f"of {entry.trained_by}"


def table() -> str:
    """Writes the README's table from the shipped checkpoints' config.json."""
    from zoo.checkpoints.card import form_of, headline

    rows = [
        "| weights | parameters | measured | seeds | time | hardware | command |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, config in recipes.checkpoint_configs().items():
        stated = headline(config)  # first: it checks that all is there that the card says
        run, seeds = config["run"], config["seeds"]
        metric = config["headline"]
        # What a fit does not measure itself, publish does, of the shipped weights alone.
        found = [seed["metrics"][metric] for seed in seeds if metric in seed["metrics"]]
        several = "one"
        if len(found) > 1:
            several = f"{len(found)}, mean {sum(found) / len(found):{form_of(metric)}}"
        measured = f"{metric}: {stated} | {several}".replace("%", " %")  # as the README's text
        rows.append(
            f"| [{name}](checkpoints/{name}/README.md) | {config['parameters']:,} | {measured} "
            f"| {run['wall_time_s'] / 60:.0f} min | {run['hardware']} | `{run['command']}` |"
        )
    return "\n".join(rows)
