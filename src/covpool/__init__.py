"""Global covariance pooling for image classification in MindSpore.

``create_model`` and ``create_pooling`` build networks and poolings by name; ``covpool.config``, ``covpool.data``,
``covpool.training`` and the other rooms hold the rest. Importing this package does not import MindSpore: that happens
with the first name that needs it.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.2.0"

_HOMES = {
    "create_model": "covpool.models",
    "freeze": "covpool.models",
    "list_models": "covpool.models",
    "create_pooling": "covpool.pooling",
    "list_poolings": "covpool.pooling",
}
__all__ = ["__version__", "create_model", "create_pooling", "freeze", "list_models", "list_poolings"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
