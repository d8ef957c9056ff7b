"""Names that files of an earlier form use, in their present form: old files still load."""

from __future__ import annotations

from typing import Any

NETWORKS = {"GAN": "SNGAN"}
ARGUMENTS = {
    "Transformer": {
        "dim": "embed_dim",
        "heads": "num_heads",
        "kv_heads": "num_kv_heads",
        "hidden": "hidden_dim",
    },
    "ViT": {
        "dim": "embed_dim",
        "heads": "num_heads",
        "pool": "global_pool",
        "embed_drop_rate": "pos_drop_rate",
    },
}
# Arguments that are gone, at the value with which they did nothing.
REMOVED: dict[str, dict[str, Any]] = {
    "SNGAN": {"detail_scale": 0.0},
    "Discriminator": {"detail_scale": 0.0},
}


def renamed_network(description: dict[str, Any]) -> dict[str, Any]:
    """A network's ``{"name": …, "args": …}``, as a checkpoint holds it."""
    name, args = description.get("name"), description.get("args")
    if not isinstance(args, dict):
        return description
    names = ARGUMENTS.get(str(name), {})
    name = NETWORKS.get(str(name), name)
    removed = REMOVED.get(str(name), {}).items()
    return {
        **description,
        "name": name,
        "args": {names.get(key, key): args[key] for key in args if (key, args[key]) not in removed},
    }


def renamed_recipe(content: Any) -> Any:
    """A recipe, or any part of one: every ``class_path`` of a network, with its ``init_args``."""
    if isinstance(content, list):
        return [renamed_recipe(item) for item in content]
    if not isinstance(content, dict):
        return content
    content = {key: renamed_recipe(value) for key, value in content.items()}
    path = content.get("class_path")
    if not isinstance(path, str) or not path.startswith("zoo.networks."):
        return content
    args = content.get("init_args")
    name = path.rpartition(".")[2]
    new = renamed_network({"name": name, "args": args if isinstance(args, dict) else {}})
    if new["name"] != name:
        content["class_path"] = f"zoo.networks.{new['name']}"
    if isinstance(args, dict):
        content["init_args"] = new["args"]
    return content
