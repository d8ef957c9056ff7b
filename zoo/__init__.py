"""Reference architectures whose regularisation is right, and can be seen to be.

Names are imported on first use (PEP 562), so ``import zoo`` itself costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# public name -> the module that defines it
_HOME = {
    "UserError": "zoo.errors",
    "load": "zoo.checkpoints",
    "freeze": "zoo.networks.layers",
    "unfreeze": "zoo.networks.layers",
}
_ROOMS = ("checkpoints", "data", "diagnostics", "networks", "recipes", "tasks")

__all__ = ["UserError", "freeze", "load", "unfreeze"]

if TYPE_CHECKING:
    from zoo.checkpoints import load
    from zoo.errors import UserError
    from zoo.networks.layers import freeze, unfreeze


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    if name in _ROOMS:
        return import_module(f"zoo.{name}")
    raise AttributeError(f"module 'zoo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_ROOMS})
