"""``python -m zoo list``: the recipes, and what is measured of their shipped weights."""

from __future__ import annotations

import json

from zoo import recipes
from zoo.commands import Parser


def main(arguments: list[str]) -> int:
    parser = Parser("list", "Show every recipe.")
    parser.add_argument("--json", action="store_true", help="for scripts: one JSON array")
    options = parser.parse_args(arguments)
    entries = recipes.entries()
    if options.json:
        print(json.dumps([entry.as_dict() for entry in entries], indent=2))
        return 0
    header = ("RECIPE", "TRAINS", "DATA", "PARAMETERS", "MEASURED", "WEIGHTS")
    table = [header]
    for entry in entries:
        measured = "-"
        if entry.metric and entry.value is not None:
            share = entry.metric.endswith("accuracy")
            measured = f"{entry.metric} {entry.value:{'.2%' if share else '.4f'}}"
        table.append(
            (
                entry.name,
                entry.trains,
                entry.data,
                f"{entry.parameters:,}" if entry.parameters else "-",
                measured,
                "shipped" if entry.weights else "-",
            )
        )
    widths = [max(len(row[column]) for row in table) for column in range(len(header))]
    for row in table:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )
    return 0
