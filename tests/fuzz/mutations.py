"""What can be wrong with a file: values that nobody expects, in every place, and damaged bytes."""

from __future__ import annotations

import copy
from random import Random
from typing import Any

LONG = "x" * 5000

# Values that a reader of JSON or YAML may meet where it expects something else.
VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    -5,
    1.5,
    1e400,
    float("nan"),
    10**30,
    -(10**30),
    "",
    "null",
    "nan",
    LONG,
    "a\0b",
    "two\nlines",
    "\udcff",
    "../../outside",
    "/etc/passwd",
    "os.system",
    "zoo.networks.ResNet",
    "http://127.0.0.1:9/model.safetensors",
    "hf-hub:somebody/model",
    [],
    {},
    [[]],
    [None],
    {"": None},
    ["a"] * 3000,
)
CODE = {"class_path": "os.system", "init_args": {"command": "touch canary"}}


def deep(levels: int) -> list[Any]:
    """A list within a list within a list."""
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value of a JSON tree but the root."""
    items: Any = ()
    if isinstance(tree, dict):
        items = tree.items()
    elif isinstance(tree, list):
        items = enumerate(tree[:4])  # of a long list, the first few stand for the rest
    found = []
    for key, value in items:
        found += [(*path, key), *places(value, (*path, key))]
    return found


def mutate(tree: Any, random: Random, values: tuple[Any, ...] = (*VALUES, CODE)) -> tuple[Any, str]:
    """A copy of a JSON tree with one or two places changed, and what was done to it."""
    tree, told = copy.deepcopy(tree), []
    for _ in range(random.choice((1, 1, 1, 2))):
        if not isinstance(tree, dict | list) or not (paths := places(tree)):
            break
        path = random.choice(paths)
        parent = tree
        for key in path[:-1]:
            parent = parent[key]
        action = random.choice(("set", "set", "set", "set", "delete", "rename", "wrap"))
        if action == "delete":
            del parent[path[-1]]
        elif action == "rename" and isinstance(parent, dict):
            new = random.choice((f"{path[-1]}_", str(path[-1])[:-1], LONG, "checkpoint_path", ""))
            parent[new] = parent.pop(path[-1])
        elif action == "wrap":
            parent[path[-1]] = random.choice(([parent[path[-1]]], {"name": parent[path[-1]]}))
        else:
            value = random.choice((*values, deep(50)))
            parent[path[-1]] = copy.deepcopy(value)
            action = f"set {str(value)[:40]!r}"
        told.append(f"{action} {'.'.join(map(str, path))[:80]}")
    if random.random() < 0.03:
        root = random.choice(values)
        return root, f"root {str(root)[:40]!r}"
    return tree, "; ".join(told)


def damage(content: bytes, random: Random) -> tuple[bytes, str]:
    """Bytes with flips, cuts, insertions, or zeros, and what was done to them."""
    data = bytearray(content)
    place = random.randrange(max(1, len(data)))
    action = random.choice(("flip", "flip", "cut", "insert", "zero", "empty", "double", "noise"))
    if action == "flip" and data:
        for _ in range(random.choice((1, 1, 8))):
            data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    elif action == "cut":
        del data[place:]
    elif action == "insert":
        data[place:place] = random.randbytes(random.randrange(1, 64))
    elif action == "zero":
        data[place : place + 64] = bytes(len(data[place : place + 64]))
    elif action == "empty":
        data.clear()
    elif action == "double":
        data += bytes(data)
    elif action == "noise":
        data = bytearray(random.randbytes(random.randrange(200)))
    return bytes(data), f"{action} at {place}"
