"""Entries in the Auto classes of transformers."""

from __future__ import annotations

from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForVideoClassification,
    AutoVideoProcessor,
)

from openmvit.hub.config import MViTV2Config
from openmvit.hub.models import (
    MViTV2Backbone,
    MViTV2ForImageClassification,
    MViTV2ForVideoClassification,
    MViTV2Model,
)
from openmvit.hub.processors import MViTV2ImageProcessor, MViTV2VideoProcessor


def register() -> None:
    """Make the Auto classes know the networks and their processors; a second call changes nothing."""
    AutoConfig.register(MViTV2Config.model_type, MViTV2Config, exist_ok=True)
    AutoModel.register(MViTV2Config, MViTV2Model, exist_ok=True)
    AutoModelForImageClassification.register(MViTV2Config, MViTV2ForImageClassification, exist_ok=True)
    AutoModelForVideoClassification.register(MViTV2Config, MViTV2ForVideoClassification, exist_ok=True)
    AutoBackbone.register(MViTV2Config, MViTV2Backbone, exist_ok=True)
    # One class whatever backend is asked for: another would give other pixels.
    own: dict[str, type] = {"pil": MViTV2ImageProcessor, "torchvision": MViTV2ImageProcessor}
    AutoImageProcessor.register(MViTV2Config, image_processor_classes=own, exist_ok=True)
    AutoVideoProcessor.register(MViTV2Config, MViTV2VideoProcessor, exist_ok=True)
