"""Image files of any kind as RGB, and labelled images as samples that depend on (seed, epoch, index) alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from openmvit.data.counter import sample_generator
from openmvit.data.faults import Faults
from openmvit.data.layouts import open_labelled
from openmvit.data.samples import FileKind, FileReadError, LabelledData, SampleTable, read_or_replace

IMAGES = FileKind(
    "image",
    frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"})
    | {".ppm", ".pgm", ".pbm", ".pnm", ".jp2"},
)

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_SIDEWAYS = (5, 6, 7, 8)
"""Orientations that swap height and width."""


class ImageReadError(FileReadError):
    """A file that cannot be decoded as an image."""


def open_images(
    root: str | Path, *, seed: int = 0, val_fraction: float = 0.1, faults: Faults | None = None
) -> LabelledData:
    """Labelled images of a folder or CSV file; see `open_labelled` for the layouts and errors.

    A file classes.txt fixes the order of the classes, such as those of ImageNet-1K before the rest of ImageNet-21K.
    """
    return open_labelled(root, IMAGES, seed=seed, val_fraction=val_fraction, faults=faults)


def read_image(path: str | Path, stream: BinaryIO | None = None) -> Image.Image:
    """Decode a file to 8-bit RGB, turned upright by its EXIF entry (an unreadable entry counts as none).

    Transparency is laid on white; 16-bit grey 0..65535 is scaled to 0..255; of an animation the first frame is taken.

    Args:
        path: the file.
        stream: its bytes when they are in memory already.
    Raises:
        ImageReadError: the file is missing, empty, truncated, corrupt or of a kind without known range.
    """
    try:
        with Image.open(path if stream is None else stream) as image:
            image.load()
            upright = _UPRIGHT.get(_orientation(image))
            rgb = to_rgb(image)
        return rgb if upright is None else rgb.transpose(upright)
    except MemoryError:
        raise
    except ImageReadError as error:
        raise ImageReadError(path, error.reason) from None
    except Exception as error:  # decoders of damaged files raise nearly every type
        raise ImageReadError(path, _reason(path, error, stream)) from error


def is_moving(path: Path) -> bool:
    """Whether a file is a picture of several frames; an unreadable one is not."""
    try:
        with Image.open(path) as image:
            return bool(getattr(image, "is_animated", False))
    except MemoryError:
        raise
    except Exception:  # as in `read_image`, which says why
        return False


def upright_size(path: str | Path) -> tuple[int, int]:
    """Height and width that `read_image` would give, from the head of the file alone.

    Raises:
        ImageReadError: the file is missing, empty or no image; damage behind its head goes unseen.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            return (width, height) if _orientation(image) in _SIDEWAYS else (height, width)
    except MemoryError:
        raise
    except Exception as error:
        raise ImageReadError(path, _reason(path, error, None)) from error


def _reason(path: str | Path, error: Exception, stream: BinaryIO | None) -> str:
    """Why decoding failed, without the path that Pillow puts into some messages."""
    if isinstance(error, FileNotFoundError):
        return "the file does not exist"
    if stream is None and Path(path).is_file() and Path(path).stat().st_size == 0:
        return "the file is empty"
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image, or damaged at its start"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8; 1 is upright."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a damaged EXIF block says nothing about the pixels
            return image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:
        return 1


def to_rgb(image: Image.Image) -> Image.Image:
    """A picture of any mode as RGB: transparency on white, 16-bit grey scaled to 8."""
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        return Image.fromarray(_grey8(image)).convert("RGB")
    if "transparency" in image.info or image.mode in ("RGBA", "RGBa", "LA", "La", "PA"):
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey8(image: Image.Image) -> np.ndarray:
    """Grey of more than 8 bits, rounded to uint8 `[H, W]`.

    Raises:
        ImageReadError: values outside 0..65535 (integers) or 0..1 (floating point), whose white is unknown.
    """
    values = np.asarray(image).astype(np.float64)
    top = 1.0 if image.mode == "F" else 65535.0
    low, high = float(values.min()), float(values.max())
    if not 0.0 <= low <= high <= top:
        raise ImageReadError("image", f"grey values {low:g}..{high:g} lie outside 0..{top:g}, so white is unknown")
    return np.floor(values * (255.0 / top) + 0.5).astype(np.uint8)


class ImageDataset(Dataset[dict[str, Tensor]]):
    """Augmented images by key: `dataset[(epoch, index)]` or `dataset[(epoch, index, copy)]`.

    A sample is a pure function of (seed, epoch, index, copy): the same in any process and in any order. An unreadable
    file is replaced by another sample of the table, chosen by the same numbers; see REPLACED and LOST.

    Args:
        table: files and labels.
        transform: from PIL image and generator to float32 `[C, H, W]`.
        seed: the run's seed.
        multilabel: labels as float32 `[num_classes]` of zeros and ones instead of int64 `[]`.
        num_classes: number of classes.
    """

    def __init__(
        self,
        table: SampleTable,
        transform: Callable[[Image.Image, torch.Generator], Tensor],
        *,
        seed: int,
        multilabel: bool,
        num_classes: int,
    ) -> None:
        self.table, self.transform = table, transform
        self.seed, self.multilabel, self.num_classes = seed, multilabel, num_classes

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, key: tuple[int, ...]) -> dict[str, Tensor]:
        epoch, index = key[:2]
        copy = key[2] if len(key) > 2 else 0
        image, source, bad = read_or_replace(self._read, len(self.table), self.seed, epoch, index)
        image = Image.new("RGB", (32, 32)) if image is None else image
        return {
            "image": self.transform(image, sample_generator(self.seed, epoch, index, copy)),
            "label": self.table.target(source, self.num_classes, self.multilabel),
            "index": torch.tensor(index),
            "bad": torch.tensor(bad),
        }

    def _read(self, index: int) -> Image.Image:
        return read_image(self.table.path(index))
