"""Entry points of torch.hub: `torch.hub.load(REPOSITORY, "mvitv2_small", pretrained=True, num_classes=5)`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

dependencies = ["torch", "torchvision", "safetensors"]

# A repository that torch.hub fetched is not installed.
sys.path.insert(0, str(Path(__file__).parent / "src"))

from openmvit.zoo import create_model, list_models  # noqa: E402


def _entry(name: str) -> Callable[..., Any]:
    def entry(pretrained: bool | str = False, **changes: Any) -> Any:
        return create_model(name, pretrained, **changes)

    entry.__name__ = entry.__qualname__ = name
    entry.__doc__ = (
        f"{name}; see openmvit.create_model. `pretrained`: True, a tag or a file. `changes`: num_classes, img_size, ..."
    )
    return entry


# One function per architecture, classifiers and detectors.
globals().update({_name: _entry(_name) for _name in list_models()})
