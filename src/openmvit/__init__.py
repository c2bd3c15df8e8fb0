"""OpenMViT: MViTv2 and MViTv1 as one network for any number of axes."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openmvit.config import MViTConfig
    from openmvit.errors import UserError
    from openmvit.model import MViT
    from openmvit.predict import load
    from openmvit.zoo import create_model, list_models

__version__ = "0.1.0"
__all__ = ["MViT", "MViTConfig", "UserError", "create_model", "list_models", "load"]

# Loaded at first use: the command line prints its help without importing torch.
_HOMES = {
    "MViT": "model",
    "MViTConfig": "config",
    "UserError": "errors",
    "create_model": "zoo",
    "list_models": "zoo",
    "load": "predict",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"openmvit.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'openmvit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
