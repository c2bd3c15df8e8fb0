"""Images for a network: files, folders, pictures in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from openmvit.data.images import IMAGES, ImageReadError, read_image, to_rgb
from openmvit.data.transforms import test_transform_from
from openmvit.data.video_reader import is_url
from openmvit.data.videos import VIDEOS
from openmvit.errors import UserError
from openmvit.predict.sources import Look, Source
from openmvit.predict.windows import is_live


class ImageKind:
    """Sources of an image classifier.

    Args:
        card: of the checkpoint.
    """

    noun = "image"
    views = 1
    batch = 16

    def __init__(self, card: dict[str, Any]) -> None:
        self.transform = test_transform_from(card["preprocessing"])

    def check(self, source: Source) -> None:
        """Raise a UserError for videos, cameras, addresses and arrays that are no images."""
        if isinstance(source, str | Path):
            if is_live(source) or VIDEOS.accepts(str(source)):
                raise UserError(
                    f"{source} is a video and this network takes images",
                    "Give images, or a network for clips (see openmvit models '*x*')",
                )
            if is_url(source):
                raise UserError(f"{source} is no file, and images are read from files", "Download it first")
        else:
            check_picture(source)

    def in_folder(self, folder: Path) -> list[Path]:
        """The images in a folder and below.

        Raises:
            UserError: if there is none.
        """
        files = sorted(f for f in folder.rglob("*") if f.is_file() and IMAGES.accepts(f.name))
        if not files:
            raise UserError(f"The folder {folder} holds no images", f"Accepted: {' '.join(sorted(IMAGES.suffixes))}")
        return files

    def prepare(self, source: Source, look: Look) -> Tensor | str:
        """The network's input `[1, 3, imgsz, imgsz]`, or why there is none."""
        try:
            return self.transform(open_picture(source))[None]
        except ImageReadError as error:
            return error.reason


def check_picture(source: Image.Image | np.ndarray) -> None:
    """Raise a UserError for an array that is no image."""
    if isinstance(source, np.ndarray):
        grey, coloured = source.ndim == 2, source.ndim == 3 and source.shape[2] in (3, 4)
        if source.dtype != np.uint8 or not source.size or not (grey or coloured):
            raise UserError(
                f"An array of {source.dtype} with shape {list(source.shape)} is no image",
                "Give uint8 [H, W], [H, W, 3] or [H, W, 4]",
            )


def open_picture(source: Source) -> Image.Image:
    """A file or a picture in memory as upright RGB.

    Raises:
        ImageReadError: if it cannot be decoded.
    """
    if isinstance(source, str | Path):
        return read_image(source)
    return to_rgb(Image.fromarray(source) if isinstance(source, np.ndarray) else source)
