"""The demo data: 1,797 scans of handwritten digits that come with the package, as a folder of images."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from openmvit.data.counter import mix

_UNSEEN_PER_CLASS = 2
_VAL_SHARE = 0.2
_SEED = 1998


def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """Ink counts uint8 0..16 `[1797, 8, 8]` and digits uint8 `[1797]`.

    Source: Optical Recognition of Handwritten Digits (Alpaydin and Kaynak, 1998), CC BY 4.0; see NOTICE.
    """
    with (files("openmvit.data") / "digits.npz").open("rb") as stream, np.load(stream) as archive:
        return archive["images"], archive["labels"]


def write_digits(root: str | Path, *, size: int = 64) -> Path:
    """Write the digits as grey PNG files: class folders in train/ and val/, and a flat unseen/ for predictions.

    Of every digit two scans go to unseen/ (`<digit>_<number>.png`), a fifth of the rest to val/. The choice is fixed:
    the same files with the same bytes every time. Writers are not known, so a writer may occur in both.

    Args:
        root: folder to fill; made if it is missing.
        size: side of the images in pixels, enlarged from 8 bicubically, dark ink on white.
    Returns:
        `root`.
    """
    root = Path(root)
    images, labels = load_digits()
    for digit in range(10):
        numbers = np.flatnonzero(labels == digit)
        generator = torch.Generator().manual_seed(mix(_SEED, digit))
        numbers = numbers[torch.randperm(len(numbers), generator=generator).numpy()]
        held_out = _UNSEEN_PER_CLASS + round((len(numbers) - _UNSEEN_PER_CLASS) * _VAL_SHARE)
        for rank, number in enumerate(numbers.tolist()):
            if rank < _UNSEEN_PER_CLASS:
                path = root / "unseen" / f"{digit}_{number:04d}.png"
            else:
                path = root / ("val" if rank < held_out else "train") / str(digit) / f"{number:04d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            _enlarge(images[number], size).save(path)
    return root


def _enlarge(ink: np.ndarray, size: int) -> Image.Image:
    """Ink 0..16 `[8, 8]` to a smooth grey image, white where there is none."""
    paper = 255 - (ink.astype(np.uint16) * 255 // 16).astype(np.uint8)
    return Image.fromarray(paper).resize((size, size), Image.Resampling.BICUBIC)
