"""Windows that slide over long videos, cameras and live streams; memory holds one window, not the video."""

from __future__ import annotations

import math
import platform
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import av
import numpy as np
import torch
from av.container import InputContainer
from av.error import FFmpegError
from torch import Tensor

from openmvit.data.clips import TARGET_FPS, ClipSampling, clip_span, window_starts
from openmvit.data.video_reader import VideoDecodeError, VideoReader
from openmvit.data.video_transforms import shrink
from openmvit.errors import UserError

_CAMERA = "camera:"
_PIECE = 8
"""Frames of full size that are in memory at a time."""
_DEVICES = {"Linux": ("v4l2", "/dev/video{}"), "Darwin": ("avfoundation", "{}"), "Windows": ("dshow", "video={}")}

View = tuple[float, float, Tensor]
"""Start and end of a window in seconds, and the network's input `[C, T, H, W]`."""


class LongVideo(ABC):
    """A video to be followed window by window.

    Args:
        sampling: which frames of a window.
        transform: from frames uint8 `[T, H, W, 3]` to the network's input.
        side: short side that frames are shrunk to while they wait.
        hop: seconds from one window to the next; None for half a window.
    """

    live = False

    def __init__(
        self, sampling: ClipSampling, transform: Callable[[Tensor], Tensor], side: int, hop: float | None
    ) -> None:
        self.sampling, self.transform, self.side = sampling, transform, side
        self.span = sampling.num_frames * sampling.stride / TARGET_FPS
        self.hop = self.span / 2 if hop is None else hop

    @abstractmethod
    def windows(self) -> Iterator[View]:
        """All windows in order.

        Raises:
            VideoDecodeError: where the video cannot be read further.
        """

    def chosen(self, start: int, length: int, fps: float) -> list[int]:
        """Frame numbers of the window that begins at frame `start` of `length`, `[T]`."""
        span = clip_span(self.sampling.num_frames, self.sampling.stride, fps)
        inside = max(min(math.ceil(span), length - start), 1)
        return [start + i for i in self.sampling.test_indices(inside, fps)]


class StoredVideo(LongVideo):
    """Windows over a video of known length; each frame is decoded once."""

    def __init__(
        self,
        opened: Callable[[], VideoReader],
        sampling: ClipSampling,
        transform: Callable[[Tensor], Tensor],
        side: int,
        hop: float | None,
    ) -> None:
        super().__init__(sampling, transform, side, hop)
        self._opened = opened

    def windows(self) -> Iterator[View]:
        """All windows in order, the last one flush with the end."""
        with self._opened() as video:
            length, fps = video.num_frames, video.fps
            span = clip_span(self.sampling.num_frames, self.sampling.stride, fps)
            starts = window_starts(length, span, max(1.0, self.hop * fps))
            clips = _read_windows(video, len(starts), lambda k: self.chosen(starts[k], length, fps), self.side)
            for start, frames in zip(starts, clips, strict=True):
                yield start / fps, min(start + span, length) / fps, self.transform(frames)


def _read_windows(video: VideoReader, count: int, chosen: Callable[[int], list[int]], side: int) -> Iterator[Tensor]:
    """The frames of each of `count` windows, whose starts ascend, read from front to back."""
    kept: dict[int, Tensor] = {}
    for k in range(count):
        wanted = chosen(k)
        # Frames of the following windows up to the end of this one come along, so that the reader never turns back.
        needed, j = set(wanted), k + 1
        while j < count and (following := chosen(j))[0] <= wanted[-1]:
            needed.update(i for i in following if i <= wanted[-1])
            j += 1
        kept = {i: frame for i, frame in kept.items() if i >= wanted[0]}
        new = sorted(needed - kept.keys())
        kept.update(zip(new, read_small(video, new, side), strict=True))
        yield torch.stack([kept[i] for i in wanted])


def read_small(video: VideoReader, indices: Sequence[int], side: int) -> Iterator[Tensor]:
    """Frames uint8 `[H, W, 3]` by number, shrunk to a short side of at most `side`; few at full size at a time."""
    for at in range(0, len(indices), _PIECE):
        yield from shrink(video.frames(indices[at : at + _PIECE]), side)


class LiveVideo(LongVideo):
    """Windows over a camera or an endless stream; a window comes as soon as its last frame has.

    Args:
        source: `camera:0`, `camera:FORMAT:DEVICE` or an rtsp address.
        seconds: when to stop; None for never.
    """

    live = True

    def __init__(
        self,
        source: str,
        sampling: ClipSampling,
        transform: Callable[[Tensor], Tensor],
        side: int,
        hop: float | None,
        seconds: float | None,
    ) -> None:
        super().__init__(sampling, transform, side, hop)
        self.source, self.seconds = source, seconds

    def windows(self) -> Iterator[View]:
        """Windows until `seconds` have been seen or the stream ends.

        Raises:
            UserError: if there is no such camera or stream.
        """
        with open_live(self.source) as container:
            stream = container.streams.video[0]
            rate = float(stream.average_rate or stream.guessed_rate or 0) or TARGET_FPS
            offsets = [(i + 0.5) / rate for i in self.chosen(0, math.ceil(self.span * rate), rate)]
            recent: deque[tuple[float, Tensor]] = deque()
            start = 0.0
            for moment, frame in self._frames(container):
                while moment >= start + self.span:
                    yield start, start + self.span, self.transform(_at(recent, [start + o for o in offsets]))
                    start += self.hop
                while len(recent) > 1 and recent[1][0] <= start:
                    recent.popleft()
                if self.seconds is not None and moment >= self.seconds:
                    break
                recent.append((moment, frame))
            if start == 0.0 and recent:  # less than a window: what there is
                yield 0.0, recent[-1][0] + 1 / rate, self.transform(_at(recent, offsets))

    def _frames(self, container: InputContainer) -> Iterator[tuple[float, Tensor]]:
        """Seconds since the first frame, and the small frame."""
        first = None
        try:
            for frame in container.decode(video=0):
                if frame.time is None:
                    continue
                first = frame.time if first is None else first
                picture = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4).copy()
                yield frame.time - first, shrink(torch.from_numpy(picture)[None], self.side)[0]
        except FFmpegError as error:
            raise VideoDecodeError(self.source, error.strerror or str(error)) from error


def _at(recent: Sequence[tuple[float, Tensor]], moments: Sequence[float]) -> Tensor:
    """The frames shown at some moments, uint8 `[T, H, W, 3]`."""
    times = [time for time, _ in recent]
    places = np.searchsorted(times, moments, side="right").clip(1) - 1
    return torch.stack([recent[i][1] for i in places.tolist()])


def is_live(source: object) -> bool:
    """Whether a source is a camera or an address without an end."""
    return isinstance(source, str) and source.startswith((_CAMERA, "rtsp://", "rtsps://"))


def open_live(source: str) -> InputContainer:
    """Open a camera or stream.

    Raises:
        UserError: if that fails.
    """
    if not source.startswith(_CAMERA):
        form, device = None, source
    elif ":" in (name := source.removeprefix(_CAMERA)):
        form, _, device = name.partition(":")
    else:
        form, pattern = _DEVICES.get(platform.system(), _DEVICES["Linux"])
        device = pattern.format(name) if name.isdecimal() or form == "dshow" else name
    try:
        return av.open(device, format=form, timeout=(10.0, 30.0) if form is None else None)
    except (FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        fix = "Plug a camera in and give its number, or give camera:FORMAT:DEVICE as FFmpeg names it"
        raise UserError(
            f"{source} cannot be opened ({device}: {reason})", fix if form else "Check the address"
        ) from None
