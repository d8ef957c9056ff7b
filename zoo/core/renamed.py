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
# Arguments of a GAN that went, at the values that are now the only ones.
GONE = {
    "discriminator_steps": 1,
    "loss": "hinge",
    "r1": 0.0,
    "gradient_clip": None,
    "warmup": 0.0,
}


def renamed_task(name: str, args: dict[str, Any], *, trained: bool = True) -> dict[str, Any]:
    """Renames a task's arguments, as a checkpoint or a recipe holds them.

    Args:
        name: the task's.
        args: its arguments.
        trained: whether they are of weights, which load whatever they were trained with; a recipe
            that asks for what went keeps it, and is refused.
    """
    if name != "GAN":
        return args
    args = {k: v for k, v in args.items() if k not in GONE or not (trained or v == GONE[k])}
    if "cuda_graph" in args:
        args["record"] = "auto" if args.pop("cuda_graph") else False
    rate = args.pop("discriminator_lr", None)
    if rate is not None:
        args["lr"] = [args.get("lr", 2e-4), rate]
    if "momentum" in args:
        momentum = {"momentum": args.pop("momentum")}
        args["optimizer_args"] = {**momentum, **(args.get("optimizer_args") or {})}
    return args


# Arguments that are gone, at the value with which they did nothing.
REMOVED: dict[str, dict[str, Any]] = {
    "SNGAN": {"detail_scale": 0.0},
    "Discriminator": {"detail_scale": 0.0},
}


def renamed_network(description: dict[str, Any]) -> dict[str, Any]:
    """Renames a network's ``{"name": …, "args": …}``, as a checkpoint holds it."""
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
    """Renames every ``class_path`` of ours in a recipe, with its ``init_args``."""
    if isinstance(content, list):
        return [renamed_recipe(item) for item in content]
    if not isinstance(content, dict):
        return content
    content = {key: renamed_recipe(value) for key, value in content.items()}
    path, args = content.get("class_path"), content.get("init_args")
    package, _, name = path.rpartition(".") if isinstance(path, str) else ("", "", "")
    if f"{package}.".startswith("zoo.tasks.") and isinstance(args, dict):
        content["init_args"] = renamed_task(name, args, trained=False)
    if f"{package}.".startswith("zoo.networks."):
        new = renamed_network({"name": name, "args": args if isinstance(args, dict) else {}})
        if new["name"] != name:
            content["class_path"] = f"zoo.networks.{new['name']}"
        if isinstance(args, dict):
            content["init_args"] = new["args"]
    return content
