"""Which images a folder holds, of which class: by its sub-folders, or by a table of labels."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from zoo.core.files import read_text
from zoo.core.text import counted, nearest, shown
from zoo.data.decode import SUFFIXES
from zoo.errors import UserError

Item = tuple[Path, int]
PARTS = ("train", "val", "test")
# How folders and tables call the validation images.
NAMES = {**{part: part for part in PARTS}, "valid": "val", "validation": "val"}


@dataclass(frozen=True)
class LeftOut:
    """A file or folder that is not read."""

    path: Path
    reason: str  # by which they are counted
    detail: str = ""  # what else there is to say of this one
    part: str = ""  # of an image: train, val or test


@dataclass
class Listing:
    """What a folder holds: the images of each part, or of ``all`` where nothing parts them."""

    classes: list[str]
    parts: dict[str, list[Item]]
    left_out: list[LeftOut] = field(default_factory=list)


def list_folders(folder: Path) -> Listing:
    """Lists ``FOLDER/train/CLASS/*`` with ``val`` and ``test`` next to it, or ``FOLDER/CLASS/*``.

    Raises:
        UserError: fewer than two classes, a class without images, one that the training images do
            not have, or a name that is not UTF-8.
    """
    left_out: list[LeftOut] = []
    roots = {"all": folder}
    if (folder / "train").is_dir():
        roots = {}
        for root in _inside(folder, "next to the folders train, val and test", left_out):
            part = NAMES.get(root.name)
            if part in roots:
                raise UserError(f"{root} and {roots[part]} both hold validation images: keep one")
            if part is None:
                left_out.append(LeftOut(root, "next to the folders train, val and test"))
            else:
                roots[part] = root
    named = {
        part: _inside(root, "outside of the class folders", left_out)
        for part, root in roots.items()
    }
    first = next(part for part in ("train", "all") if part in roots)
    classes = [place.name for place in named[first]]
    if len(classes) < 2:
        raise UserError(
            f"{roots[first]}: {counted(len(classes), 'sub-folder')}, and there must be one for "
            "each class, two at least (or give --data.labels FILE)"
        )
    listing = Listing(classes, {part: [] for part in roots}, left_out)
    for part, places in named.items():
        if unknown := sorted({place.name for place in places} - set(classes)):
            raise UserError(
                f"{roots[part] / unknown[0]}: a class that the training images do not have"
            )
        for label, name in enumerate(classes):
            paths = _images_in(roots[part] / name, left_out)
            if not paths:
                raise UserError(f"{roots[part] / name}: no image in it ({', '.join(SUFFIXES)})")
            listing.parts[part] += [(path, label) for path in paths]
    return listing


def list_labels(folder: Path, file: Path) -> Listing:
    """Lists the images that a table of labels names: CSV, or TSV, of path and label.

    A first line ``path,label`` may name the columns, in any order, and a column ``split`` (train,
    val or test). Paths are relative to the folder. Classes are sorted by name, whole numbers by
    value.

    Raises:
        UserError: a line without path or label, an image with two labels, an unknown split, or
            fewer than two classes; the message names the line.
    """
    text = read_text(file).removeprefix("\ufeff")
    first = text.partition("\n")[0]
    delimiter = max("\t;,", key=first.count)
    rows = [
        (n, row)
        for n, row in enumerate(csv.reader(text.splitlines(), delimiter=delimiter), 1)
        if row
    ]
    columns = ["path", "label"]
    heading = [cell.strip().lower() for cell in rows[0][1]] if rows else []
    if {"path", "label"} <= set(heading):
        columns, rows = heading, rows[1:]
    seen: dict[Path, int] = {}
    found: list[tuple[Path, str, str]] = []
    for number, row in rows:
        cells = dict(zip(columns, (cell.strip() for cell in row), strict=False))
        where = f"{file}:{number}"
        if not cells.get("path") or not cells.get("label"):
            raise UserError(f"{where}: {shown(delimiter.join(row))} is not a path and a label")
        path = Path(os.path.normpath(folder / cells["path"]))
        check_name(path)
        if path in seen:
            raise UserError(f"{where}: {cells['path']} has a label already, in line {seen[path]}")
        seen[path] = number
        part = "all"
        if "split" in columns:
            part = NAMES.get(cells.get("split", "").lower(), "")
            if not part:
                raise UserError(
                    f"{where}: split is {shown(cells.get('split', ''))}: write train, val or test"
                )
        found.append((path, cells["label"], part))
    classes = _sorted({label for _, label, part in found if part in ("all", "train")})
    if len(classes) < 2:
        few = counted(len(classes), "class", "classes")
        raise UserError(f"{file}: {few} of training images, and there must be two")
    places = {name: label for label, name in enumerate(classes)}
    listing = Listing(classes, {"train": []} if "split" in columns else {"all": []})
    for path, name, part in found:
        if name not in places:
            raise UserError(
                f"{file}:{seen[path]}: {shown(name)} is a class that the training images do not "
                f"have{nearest(name, classes)}"
            )
        listing.parts.setdefault(part, []).append((path, places[name]))
    unlisted = [path for path in _images_in(folder, listing.left_out) if path not in seen]
    listing.left_out += [LeftOut(path, f"without a label in {file.name}") for path in unlisted]
    table = file.resolve()
    listing.left_out = [one for one in listing.left_out if one.path.resolve() != table]
    return listing


def check_name(path: Path) -> None:
    """Refuses a name that is not UTF-8: a checkpoint, which keeps the classes, could not hold it.

    Raises:
        UserError: it is not.
    """
    try:
        path.name.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"{os.fsencode(path)!r} has a name that is not UTF-8: rename it") from None


def _sorted(names: set[str]) -> list[str]:
    numbers = all(name.isdecimal() for name in names)
    return sorted(names, key=lambda name: (int(name), name) if numbers else (0, name))


def _is_hidden(name: str) -> bool:
    """``.ipynb_checkpoints`` and its like hold copies, and a NAS keeps thumbnails in ``@eaDir``."""
    return name.startswith((".", "@"))


def _inside(root: Path, reason: str, left_out: list[LeftOut]) -> list[Path]:
    """The visible sub-folders, by name; ``reason`` is why images next to them are not read."""
    found = []
    for path in sorted(root.iterdir()):
        if _is_hidden(path.name):
            left_out.append(LeftOut(path, "hidden"))
        elif path.is_dir():
            check_name(path)
            found.append(path)
        elif path.suffix.lower() in SUFFIXES:
            left_out.append(LeftOut(path, reason))
    return found


def _images_in(folder: Path, left_out: list[LeftOut]) -> list[Path]:
    """The images of a folder, in folders within it too, in order."""
    found = []
    for place, folders, names in os.walk(folder):
        for name in [*folders, *names]:
            path = Path(place, name)
            if _is_hidden(name):
                left_out.append(LeftOut(path, "hidden"))
            elif name in folders:
                if path.is_symlink():  # which might lead round in a circle
                    left_out.append(LeftOut(path, "a link to a folder"))
            elif path.suffix.lower() in SUFFIXES:
                check_name(path)
                found.append(path)
            else:
                kind = path.suffix.lower()
                kind = f"the format {shown(kind)}" if kind else "a name without suffix"
                left_out.append(LeftOut(path, f"{kind} is not read"))
        folders[:] = [name for name in folders if not _is_hidden(name)]
    return sorted(found)


def describe(
    folder: Path,
    classes: Sequence[str],
    parts: dict[str, list[Item]],
    left_out: Sequence[LeftOut],
    notes: Sequence[str],
) -> str:
    """Tabulates the images by class and part, and what is left out by reason.

    Args:
        folder: what was listed.
        classes: their names.
        parts: the images of each part.
        left_out: what is not read.
        notes: further lines.
    """
    images = sum(map(len, parts.values()))
    lines = [f"{folder}: {counted(images, 'image')} of {counted(len(classes), 'class', 'classes')}"]
    lines += [*_table(classes, parts), *notes]
    reasons: dict[str, list[LeftOut]] = {}
    for one in left_out:
        reasons.setdefault(one.reason, []).append(one)
    if reasons:
        lines.append(f"left out: {len(left_out):,}")
    for reason, those in sorted(reasons.items(), key=lambda pair: -len(pair[1])):
        lines.append(f"  {len(those):,} {reason}:")
        for one in those[:3]:
            path = one.path.relative_to(folder) if one.path.is_relative_to(folder) else one.path
            # A name that is not read may be of any bytes.
            name = os.fsencode(path).decode("utf-8", "backslashreplace")
            lines.append(f"    {name} {one.detail}".rstrip())
        if len(those) > 3:
            lines.append(f"    and {len(those) - 3:,} more")
    return "\n".join(lines)


def _table(classes: Sequence[str], parts: dict[str, list[Item]]) -> list[str]:
    """A line for each class; of more than forty, for the ten most frequent and the ten rarest."""
    counts = [[0] * len(PARTS) for _ in classes]
    for column, part in enumerate(PARTS):
        for _, label in parts.get(part, ()):
            counts[label][column] += 1
    rows = list(zip(classes, counts, strict=True))
    if len(rows) > 40:
        rows.sort(key=lambda row: -sum(row[1]))
        rows = [*rows[:10], *rows[-10:]]
    rows.append(("total", [sum(column) for column in zip(*counts, strict=True)]))
    table = [(name, [f"{count:,}" for count in counted]) for name, counted in rows]
    if len(classes) > 40:
        table.insert(10, (f"… {len(classes) - 20:,} more", ["…"] * len(PARTS)))
    table.insert(0, ("class", list(PARTS)))
    width = max(len(name) for name, _ in table)
    wide = max(len(cell) for _, cells in table for cell in cells)
    return [
        f"  {name:<{width}}" + "".join(f"  {cell:>{wide}}" for cell in cells)
        for name, cells in table
    ]
