"""Hugging Face: importing this registers the networks with the Auto classes of transformers.

Then `AutoModelForImageClassification.from_pretrained(folder)` and its kin, `pipeline(..., model=folder)` and `Trainer`
take folders that `from_checkpoint` or `save_pretrained` wrote, without network and without code from elsewhere. The one
exception is `AutoBackbone.from_pretrained(folder)`, which asks the hub for the folder's name first:
`MViTV2Backbone.from_pretrained(folder)` has the weights, `AutoBackbone.from_config(config)` fresh ones.

`openmvit.hub.timm` registers with timm when it is imported; nothing else in the package registers anywhere.
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
