"""Reference architectures whose regularization is right, and can be seen to be.

Names are imported on first use (PEP 562), so ``import zoo`` itself costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from zoo.core.version import __version__

# public name -> the module that defines it
_HOME = {
    "AuditCallback": "zoo.diagnostics.callback",
    "UserError": "zoo.errors",
    "audit": "zoo.diagnostics.audit",
    "calibrate": "zoo.diagnostics.calibrate",
    "confidence": "zoo.diagnostics.selective",
    "ensemble": "zoo.diagnostics.mc_dropout",
    "freeze": "zoo.networks.freezing",
    "load": "zoo.checkpoints.load",
    "mc_dropout": "zoo.diagnostics.mc_dropout",
    "prediction_sets": "zoo.diagnostics.prediction_sets",
    "recalibrate": "zoo.diagnostics.recalibrate",
    "unfreeze": "zoo.networks.freezing",
    "variance_shift": "zoo.diagnostics.variance_shift",
}
_PACKAGES = (
    "checkpoints",
    "data",
    "diagnostics",
    "evaluation",
    "networks",
    "recipes",
    "tasks",
    "testing",
)

__all__ = [
    "AuditCallback",
    "UserError",
    "__version__",
    "audit",
    "calibrate",
    "confidence",
    "ensemble",
    "freeze",
    "load",
    "mc_dropout",
    "prediction_sets",
    "recalibrate",
    "unfreeze",
    "variance_shift",
]

if TYPE_CHECKING:
    from zoo.checkpoints.load import load
    from zoo.diagnostics.audit import audit
    from zoo.diagnostics.calibrate import calibrate
    from zoo.diagnostics.callback import AuditCallback
    from zoo.diagnostics.mc_dropout import ensemble, mc_dropout
    from zoo.diagnostics.prediction_sets import prediction_sets
    from zoo.diagnostics.recalibrate import recalibrate
    from zoo.diagnostics.selective import confidence
    from zoo.diagnostics.variance_shift import variance_shift
    from zoo.errors import UserError
    from zoo.networks.freezing import freeze, unfreeze


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    if name in _PACKAGES:
        return import_module(f"zoo.{name}")
    raise AttributeError(f"module 'zoo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_PACKAGES})
