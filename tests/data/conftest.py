"""Small image data sets on a real disk."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def noise_image(seed: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    """Smooth coloured noise, width x height."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def fill():
    """Write `count` JPEGs into a folder; names and pixels depend on the folder's path below its data set."""

    def write(folder: Path, count: int, start: int = 0) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(count):
            noise_image(start + i).save(folder / f"{i:03d}.jpg")
        return folder

    return write
