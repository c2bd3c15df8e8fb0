"""From what the user named to single things to look at."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from PIL import Image
from torch import Tensor

from openmvit.data.video_reader import is_url
from openmvit.errors import UserError
from openmvit.predict.windows import LongVideo, is_live

Source = str | Path | Image.Image | np.ndarray
_IN_MEMORY = (Image.Image, np.ndarray)
T = TypeVar("T")


@dataclass(frozen=True)
class Look:
    """How videos are looked at.

    Args:
        timeline: with sliding windows also where the video is short.
        hop: seconds from one window to the next; None for half a window.
        seconds: when to stop watching a camera or live stream; None for Ctrl-C.
    Raises:
        UserError: if a value cannot be used.
    """

    timeline: bool = False
    hop: float | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        for name in ("hop", "seconds"):
            value = getattr(self, name)
            if value is not None and not 0.0 < value < float("inf"):
                raise UserError(f"{name} is {value}", "Give seconds above 0")


class Kind(Protocol):
    """Which sources a network takes.

    Attributes:
        noun: what one source is.
        batch: inputs per step unless the user says otherwise.
    """

    noun: str
    batch: int

    def check(self, source: Source) -> None:
        """Raise a UserError for a file, address or object that is of another kind."""
        ...

    def in_folder(self, folder: Path) -> list[Path]:
        """Everything of this kind in a folder and below, sorted; UserError if there is nothing."""
        ...


class ClassifiedKind(Kind, Protocol):
    """What differs between classifiers of images and of clips.

    Attributes:
        views: inputs of the network per source.
        transform: the test transform.
    """

    views: int
    transform: Callable[..., Tensor]

    def prepare(self, source: Source, look: Look) -> Tensor | LongVideo | str:
        """The network's inputs `[views, C, *size]`, a video to follow with windows, or why it cannot be read."""
        ...


def expand(sources: Source | Iterable[Source], kind: Kind) -> list[Source]:
    """Single sources in order.

    Raises:
        UserError: for a path that does not exist, a folder or pattern without anything of this kind, something of
            another kind, or no source at all.
    """
    found: list[Source] = []
    for source in [sources] if isinstance(sources, (str, Path, *_IN_MEMORY)) else sources:
        if isinstance(source, _IN_MEMORY) or is_live(source) or is_url(source):
            found.append(source)
        else:
            found.extend(_files(source, kind))
    if not found:
        raise UserError("There is nothing to predict", "Give files, folders or patterns")
    for source in found:
        kind.check(source)
    return found


def _files(source: str | Path, kind: Kind) -> list[Path]:
    path = Path(source)
    if path.is_file():
        return [path]
    if path.is_dir():
        return kind.in_folder(path)
    matches = [Path(name) for name in sorted(glob.glob(str(source), recursive=True))]  # noqa: PTH207 - absolute patterns
    if not matches:
        raise UserError(f"There is no file or folder {source}", "Check the path or the pattern")
    return [file for match in matches for file in ([match] if match.is_file() else kind.in_folder(match))]


def names_of(sources: Iterable[Source], noun: str) -> list[str]:
    """Paths, and `image 0`, `image 1`, ... for what is in memory."""
    return [str(s) if isinstance(s, str | Path) else f"{noun} {i}" for i, s in enumerate(sources)]


def ahead(things: Iterator[T], pool: ThreadPoolExecutor) -> Iterator[T]:
    """The same, with the next one read by a thread while the network works on this one."""
    waiting = pool.submit(next, things, None)
    while (thing := waiting.result()) is not None:
        waiting = pool.submit(next, things, None)
        yield thing
