"""Hugging Face: importing this registers the networks with the Auto classes of transformers.

`openmvit.hub.timm` does the same for timm when it is imported; nothing else in the package registers anywhere.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or find_spec("transformers"):
    from openmvit.hub.config import MViTV2Config
    from openmvit.hub.folder import from_checkpoint, to_checkpoint, wrap
    from openmvit.hub.models import (
        MViTV2Backbone,
        MViTV2ForImageClassification,
        MViTV2ForVideoClassification,
        MViTV2Model,
    )
    from openmvit.hub.processors import MViTV2ImageProcessor, MViTV2VideoProcessor
    from openmvit.hub.register import register

    register()

__all__ = [
    "MViTV2Backbone",
    "MViTV2Config",
    "MViTV2ForImageClassification",
    "MViTV2ForVideoClassification",
    "MViTV2ImageProcessor",
    "MViTV2Model",
    "MViTV2VideoProcessor",
    "from_checkpoint",
    "to_checkpoint",
    "wrap",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        raise ImportError(f"openmvit.hub.{name} needs transformers: pip install 'openmvit[hub]'")
    raise AttributeError(f"module 'openmvit.hub' has no attribute {name!r}")
