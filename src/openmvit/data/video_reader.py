"""What every video reader gives, and the one of them that needs no library: a folder of pictures."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from torch import Tensor

from openmvit.data.images import IMAGES, ImageReadError, read_image
from openmvit.data.samples import FileReadError

FOLDER_FPS = 30.0


class VideoDecodeError(FileReadError):
    """A video that cannot be decoded, as a whole or where frames were asked for.

    Args:
        path: file, folder or URL.
        reason: why, in a few words without the path.
    """

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(path, reason)
        self.source = str(path)

    def __str__(self) -> str:
        return f"{self.source}: {self.reason}"


class VideoReader(ABC):
    """An open video; a context manager.

    Frame i is what is shown in the middle of the i-th of equal intervals of 1 / fps seconds, counted from the first
    frame: the i-th stored frame where the rate is constant, and the right one by its timestamp where it is not.

    Attributes:
        source: what was opened.
        fps: frames per second, averaged over the video.
        num_frames: frames in the video as the file states it, at least 1.
        duration: seconds.
        spent: seconds used so far for `seek` (up to the first frame asked for) and `decode`.
    """

    source: str
    fps: float
    num_frames: int
    duration: float
    spent: dict[str, float]

    @property
    @abstractmethod
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, upright."""

    @abstractmethod
    def frames(self, indices: Sequence[int]) -> Tensor:
        """Frames by number in any order, repeats allowed: RGB uint8 `[T, H, W, 3]`, turned upright.

        A frame that is missing from the end, or damaged, is replaced by the one before it as long as at most a second
        and a tenth of the video (or two frames) are missing there.

        Raises:
            VideoDecodeError: if more is missing, or nothing can be decoded.
        """

    def close(self) -> None:  # noqa: B027 - only files have something to let go of
        """Let go of the file."""

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def is_url(path: str | Path) -> bool:
    """Whether `path` names something on a network."""
    return "://" in str(path)[:12]


class FrameFolder(VideoReader):
    """A folder of pictures of one size as a video of 30 frames per second."""

    def __init__(self, folder: Path) -> None:
        self.source = str(folder)
        with os.scandir(folder) as entries:
            names = sorted(e.name for e in entries if not e.name.startswith(".") and IMAGES.accepts(e.name))
        if not names:
            raise VideoDecodeError(folder, "the folder has no pictures")
        # 2 before 10: shorter numbers come first where names differ in their digits alone.
        self._paths = [folder / name for name in sorted(names, key=_natural)]
        self.fps, self.num_frames = FOLDER_FPS, len(names)
        self.duration = self.num_frames / self.fps
        self.spent = {"seek": 0.0, "decode": 0.0}
        self._size: tuple[int, int] | None = None

    @property
    def size(self) -> tuple[int, int]:
        if self._size is None:
            self.frames([0])
        assert self._size is not None
        return self._size

    def frames(self, indices: Sequence[int]) -> Tensor:
        pictures = {number: self._picture(number) for number in sorted({check_index(self, i) for i in indices})}
        return stack_frames(self, [pictures[min(i, self.num_frames - 1)] for i in indices])

    def _picture(self, number: int) -> np.ndarray:
        path = self._paths[number]
        try:
            image = read_image(path)
        except ImageReadError as error:
            raise VideoDecodeError(self.source, f"{path.name}: {error.reason}") from None
        self._size = self._size or image.size
        if image.size != self._size:
            sides = "{}x{} instead of {}x{}".format(*image.size, *self._size)
            raise VideoDecodeError(self.source, f"{path.name} is {sides}")
        return np.asarray(image)


def _natural(name: str) -> tuple[tuple[int, str], ...]:
    """Sort key that compares runs of digits as numbers."""
    parts: list[tuple[int, str]] = []
    text = ""
    for char in name + "\0":
        if text and char.isdigit() != text[-1].isdigit():
            parts.append((int(text), "") if text.isdigit() else (-1, text))
            text = ""
        text += char
    return tuple(parts)


def check_index(video: VideoReader, index: int) -> int:
    """A frame number, the last one for numbers just behind the end.

    Raises:
        IndexError: below 0 or more than two behind the end.
    """
    if not 0 <= index <= video.num_frames + 1:
        raise IndexError(f"frame {index} of {video.num_frames} of {video.source}")
    return min(index, video.num_frames - 1)


def stack_frames(video: VideoReader, pictures: Sequence[np.ndarray]) -> Tensor:
    """Pictures uint8 `[H, W, 3]` as one tensor `[T, H, W, 3]`."""
    if not pictures:
        raise ValueError(f"no frames asked for of {video.source}")
    return torch.from_numpy(np.stack(pictures))
