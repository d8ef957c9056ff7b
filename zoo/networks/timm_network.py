"""Any network of timm, in any recipe."""

from __future__ import annotations

from typing import Any

from torch import nn

from zoo.core.text import nearest
from zoo.errors import UserError


def timm_network(
    name: str,
    pretrained: bool = False,
    num_classes: int = 1000,
    in_channels: int = 3,
    args: dict[str, Any] | None = None,
) -> nn.Module:
    """A network of timm's by name, which a checkpoint can name again.

    Args:
        name: as ``timm.list_models()`` has it.
        pretrained: downloads timm's weights and starts from them.
        num_classes: size of the output.
        in_channels: 1 for grey images, 3 for color; timm adapts pretrained filters.
        args: further arguments of ``timm.create_model``, such as ``{"drop_rate": 0.2}``.

    Raises:
        UserError: timm has no such network or weights, it refuses an argument, or its weights
            cannot be downloaded.
    """
    import timm

    if not timm.is_model(name):
        raise UserError(f"timm has no network named {name!r}{nearest(name, timm.list_models())}")
    given = {"num_classes": num_classes, "in_chans": in_channels, **(args or {})}
    try:
        network: nn.Module = timm.create_model(name, pretrained=pretrained, **given)
    except (TypeError, ValueError, RuntimeError, AssertionError, OSError) as error:
        # Of an unknown tag or argument, of sizes that do not fit, of a download that fails.
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"timm's {name} refuses its arguments: {reason[0]}") from None
    # What a checkpoint keeps: rebuilding it downloads nothing, its weights follow.
    network.zoo_description = {  # type: ignore[assignment]
        "name": "timm_network",
        "args": {
            "name": name,
            "pretrained": False,
            "num_classes": num_classes,
            "in_channels": in_channels,
            "args": args,
        },
    }
    return network
