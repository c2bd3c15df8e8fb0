"""A small detector as one of our files, whose finds in its own pictures are recorded."""

import json
from pathlib import Path

from PIL import Image
from safetensors.torch import load_file

from openmvit import checkpoint
from openmvit.detection import released
from openmvit.detection.settings import from_settings

GOLDEN = Path(__file__).parent / "golden" / "detection" / "mask_rcnn_plain"
CLASSES = ("ant", "bee", "cat")
CATEGORY_IDS = (2, 5, 9)


def detector_file(path, **changes):
    """The recorded detector; its card resizes the first recorded picture (205 x 270) to its own size."""
    model = from_settings(json.loads((GOLDEN / "config.json").read_text()))
    state = released.to_native(load_file(GOLDEN / "model.safetensors"), model.config)
    card = {
        "task": "detection",
        "model": "recorded",
        "architecture": model.config.to_dict(),
        "classes": list(CLASSES),
        "category_ids": list(CATEGORY_IDS),
        "preprocessing": {"short_side": 205, "long_side": 270},
    }
    checkpoint.save(path, model.state_dict() | state, card | changes)
    return path


def recorded_picture(number, path=None):
    """A picture that the recorded detector was run on, as PIL; written to `path` too."""
    pixels = load_file(GOLDEN / "inputs.safetensors")[f"image.{number}"]
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    return image


def recorded_finds(prefix):
    """Tensors of the recording by their last name, such as those of `alone.0`."""
    answers = load_file(GOLDEN / "eval.safetensors")
    return {key.removeprefix(f"{prefix}."): value for key, value in answers.items() if key.startswith(f"{prefix}.")}
