"""A data set of noise in three colours, and a run that has learnt it: real files, real training, seconds."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from openmvit.training.recipe_file import check_fields
from openmvit.training.run import train

CLASSES = ("ant", "bee", "cat")
TINY = {"input_size": [32, 32], "depths": [1, 1], "embed_dim": 16, "adaptive_kv_stride": [2, 2]}
"""A network of 19,507 parameters as fields of MViTConfig."""


def picture(path, seed, size=24):
    """Noise that is brightest in red, green or blue: seed modulo 3."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 120, (size, size, 3), dtype=np.uint8)
    pixels[..., seed % 3] += 120
    Image.fromarray(pixels).save(path)


def write_data(root, train=8, val=2):
    """train/ and val/ with so many images of every class; one class per colour."""
    for number, name in enumerate(CLASSES):
        for i in range(train):
            picture(root / "train" / name / f"{i}.png", 3 * i + number)
        for i in range(val):
            picture(root / "val" / name / f"{i}.png", 300 + 3 * i + number)
    return root


def write_model(path):
    Path(path).write_text(json.dumps(TINY))
    return path


def train_run(folder, data, **changes):
    """A run in `folder` that tells the colours apart."""
    options = {
        "model": str(write_model(folder / "tiny.json")),
        "weights": "none",
        "data": str(data),
        "imgsz": 32,
        "batch": 8,
        "epochs": 8,
        "lr": 1e-2,
        "lr_batch": 0,
        "warmup_epochs": 1,
        "auto_augment": None,
        "erase": 0,
        "mixup": 0,
        "cutmix": 0,
        "workers": 0,
        "device": "cpu",
        "plots": False,
        "out_dir": str(folder / "runs"),
    }
    return train(check_fields(options | changes))
