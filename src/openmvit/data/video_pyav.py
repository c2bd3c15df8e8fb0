"""Videos through PyAV, whose wheel brings its own FFmpeg: one thread, seek to the keyframe, decode what is needed."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError, InvalidDataError
from av.stream import Disposition
from av.video.reformatter import VideoReformatter
from torch import Tensor

from openmvit.data.video_reader import VideoDecodeError, VideoReader, check_index, is_url, stack_frames

_URL_TIMEOUT = (10.0, 30.0)
# swscale takes as many threads as there are cores unless told; versions before the option used one.
_ONE_THREAD = {"threads": 1} if "threads" in (VideoReformatter.reformat.__doc__ or "") else {}
_SEEK_GAP = 250
"""Frames that are decoded through rather than seeked over: encoders set a keyframe at least this often."""
_SEEK_BACK = (0.0, 3.0)
"""Seconds to begin earlier when a seek lands behind the wanted frame; after these, the beginning of the file."""


class PyAVReader(VideoReader):
    """A video file or URL.

    Attributes:
        has_timestamps: whether the frames say when they are shown; those of AVI with B-frames do not and are counted.
    Raises:
        VideoDecodeError: missing, empty, not a video, without a video stream, or damaged at its start.
    """

    def __init__(self, path: str | Path) -> None:
        self.source = str(path)
        self.spent = {"seek": 0.0, "decode": 0.0}
        self._reformatter = VideoReformatter()
        self._width, self._height, self._turns = 0, 0, 0
        self._damaged = False
        self._connect()
        try:
            self._read_facts()
        except FFmpegError as error:
            self.close()
            raise VideoDecodeError(path, _words(error)) from error

    def _connect(self) -> None:
        """Open the file at its beginning and pick the video stream."""
        url = is_url(self.source)
        try:
            # `file:` keeps a colon in a file name from being read as a protocol.
            name = self.source if url else f"file:{self.source}"
            self._container = av.open(name, timeout=_URL_TIMEOUT if url else None)
        except (OSError, ValueError, FFmpegError) as error:
            raise VideoDecodeError(self.source, _open_reason(self.source, error)) from error
        streams = [s for s in self._container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams:
            others = ", ".join(sorted({s.type for s in self._container.streams})) or "nothing"
            self.close()
            raise VideoDecodeError(self.source, f"no video stream ({others} only)")
        best = self._container.streams.best("video")
        self._stream = next((s for s in streams if best is not None and s.index == best.index), streams[0])
        self._stream.codec_context.thread_count = 1
        self._start_decoding()
        self._fresh, self._count = True, 0

    def _read_facts(self) -> None:
        """Rate, length and first timestamp as the file states them."""
        rate = self._stream.average_rate or self._stream.guessed_rate or self._stream.base_rate
        self.fps = float(rate) if rate else 25.0
        # AVI stores no presentation times, and with B-frames those that FFmpeg makes up are out of order: its frames
        # are counted from the beginning instead.
        self.has_timestamps = self._container.format.name != "avi" or not self._stream.codec_context.has_b_frames
        self._first = _seconds(self._stream.start_time, self._stream) if self.has_timestamps else 0.0
        duration = _seconds(self._stream.duration, self._stream) or _tagged_duration(self._stream)
        if duration is None and self._container.duration:
            duration = self._container.duration / av.time_base
        self.duration = duration if duration else self._scan_duration()
        self.num_frames = self._stream.frames or max(1, round(self.duration * self.fps))

    def _start_decoding(self) -> None:
        self._packets = self._container.demux(self._stream)
        self._waiting: deque[av.VideoFrame] = deque()
        self._shown: av.VideoFrame | None = None
        self._next: av.VideoFrame | None = None

    def _scan_duration(self) -> float:
        """Seconds by the timestamps of all packets, for files that do not state it (live recordings)."""
        first, last = None, 0.0
        self._fresh = False
        try:
            for packet in self._container.demux(self._stream):
                moment = _seconds(packet.pts, self._stream)
                if moment is not None:
                    first, last = moment if first is None else min(first, moment), max(last, moment)
        except FFmpegError:
            pass  # a cut file ends here
        if first is None:
            raise VideoDecodeError(self.source, "no frames with timestamps")
        self._first = first if self._first is None else self._first
        self._rewind()
        return last - first + 1.0 / self.fps

    @property
    def size(self) -> tuple[int, int]:
        if not self._width:
            self.frames([0])
        return (self._height, self._width) if self._turns % 2 else (self._width, self._height)

    def frames(self, indices: Sequence[int]) -> Tensor:
        wanted = sorted({check_index(self, index) for index in indices})
        began = time.perf_counter()
        try:
            self._position(self._moment(wanted[0]) if wanted else 0.0)
            self.spent["seek"] += time.perf_counter() - began
            began = time.perf_counter()
            pictures = {number: self._picture(number) for number in wanted}
        except FFmpegError as error:
            raise VideoDecodeError(self.source, _words(error)) from error
        clip = stack_frames(self, [pictures[min(index, self.num_frames - 1)] for index in indices])
        self.spent["decode"] += time.perf_counter() - began
        return clip

    def _moment(self, number: int) -> float:
        """Timestamp in seconds of the middle of a frame's interval."""
        if self._first is None:
            first = self._pull()
            self._first = self._time(first) if first is not None else 0.0
            self._rewind()
        return self._first + (number + 0.5) / self.fps

    def _position(self, moment: float) -> None:
        """Decode until `_shown` is the frame shown at `moment`, seeking first where that saves work."""
        near = self._shown is not None and self._time(self._shown) <= moment
        if not near or (self._next is not None and moment > self._time(self._next) + _SEEK_GAP / self.fps):
            for back in _SEEK_BACK if self.has_timestamps else ():
                self._seek(moment - back)
                self._shown, self._next = self._pull(), self._pull()
                if self._shown is not None and self._time(self._shown) <= moment:
                    break
            else:
                self._rewind()
                self._shown, self._next = self._pull(), self._pull()
        while self._next is not None and self._time(self._next) <= moment:
            self._shown, self._next = self._next, self._pull()

    def _seek(self, moment: float) -> None:
        """Go to the keyframe before `moment`."""
        assert self._stream.time_base is not None
        self._fresh = False
        try:
            self._container.seek(int(moment / self._stream.time_base), stream=self._stream, backward=True)
        except FFmpegError:  # no index and no way to search
            self._rewind()
        self._start_decoding()

    def _rewind(self) -> None:
        """Go to the beginning by opening again: in some containers a seek to the first frame misses it."""
        if not self._fresh:
            self.close()
            self._connect()

    def _pull(self) -> av.VideoFrame | None:
        """The next whole frame, None at the end; packets that do not decode are passed over."""
        self._fresh = False
        while not self._waiting:
            try:
                packet = next(self._packets, None)
                if packet is None:
                    return None
                frames = packet.decode()
            except FFmpegError:
                self._damaged = True
                continue
            self._waiting.extend(frame for frame in frames if not frame.is_corrupt)
            self._damaged |= any(frame.is_corrupt for frame in frames)
        frame = self._waiting.popleft()
        if not self.has_timestamps:
            frame.pts, frame.time_base = self._count, 1 / Fraction(self.fps).limit_denominator(1001)
            self._count += 1
        return frame

    def _picture(self, number: int) -> np.ndarray:
        """Frame `number` as RGB, or the one before it where little is missing."""
        moment = self._moment(number)
        self._position(moment)
        frame = self._shown
        if frame is None:
            raise VideoDecodeError(self.source, "no frame can be decoded")
        self._check_gap(frame, moment)
        return self._rgb(frame)

    def _check_gap(self, frame: av.VideoFrame, moment: float) -> None:
        """Raise if too much is missing between a frame and the moment that it is to stand for."""
        length = max(float((frame.duration or 0) * (frame.time_base or 0)), 1.0 / self.fps)
        missing = moment - self._time(frame) - length
        slack = max(2.0 / self.fps, min(1.0, 0.1 * self.duration))
        if missing > slack and (self._next is None or self._damaged):
            origin = self._first or 0.0
            at = self._time(frame) + length - origin
            if self._next is None:
                raise VideoDecodeError(self.source, f"ends after {at:.2f} s of {self.duration:.2f} s, truncated")
            until = self._time(self._next) - origin
            raise VideoDecodeError(self.source, f"damaged from {at:.2f} s to {until:.2f} s")

    def _rgb(self, frame: av.VideoFrame) -> np.ndarray:
        if not self._width:
            self._width, self._height = frame.width, frame.height
        # A stream may change its size on the way; all frames get that of the first one decoded.
        frame_rgb = self._reformatter.reformat(frame, self._width, self._height, "rgb24", **_ONE_THREAD)
        self._turns = round(frame.rotation / 90) % 4
        return np.rot90(frame_rgb.to_ndarray(), self._turns)

    def _time(self, frame: av.VideoFrame) -> float:
        """Seconds of a frame's timestamp."""
        moment = frame.time
        if moment is None and frame.dts is not None and frame.time_base is not None:
            moment = float(frame.dts * frame.time_base)
        if moment is None:
            raise VideoDecodeError(self.source, "frames without timestamps")
        return moment

    def stream(self) -> Iterator[tuple[float, np.ndarray]]:
        """Every frame from the beginning: its second, and RGB uint8 `[H, W, 3]`, upright.

        Raises:
            VideoDecodeError: if nothing can be decoded, or as much is missing as `frames` would not bear.
        """
        self._rewind()
        self._shown = self._pull()
        if self._shown is None:
            raise VideoDecodeError(self.source, "no frame can be decoded")
        while self._shown is not None:
            frame, self._next = self._shown, self._pull()
            yield self._time(frame), np.ascontiguousarray(self._rgb(frame))
            if self._next is not None:
                self._check_gap(frame, self._time(self._next))
            self._shown = self._next
        self.frames([self.num_frames - 1])

    def close(self) -> None:
        self._container.close()


def _seconds(ticks: int | None, stream: av.VideoStream) -> float | None:
    return None if ticks is None or stream.time_base is None else float(ticks * stream.time_base)


def _tagged_duration(stream: av.VideoStream) -> float | None:
    """Seconds from Matroska's tag `DURATION` (00:00:10.5), whose container length counts the sound too."""
    match = re.fullmatch(r"(\d+):(\d+):([\d.]+)", stream.metadata.get("DURATION", ""))
    return int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3]) if match else None


def _open_reason(path: str | Path, error: Exception) -> str:
    """Why a file could not be opened, in words."""
    if isinstance(error, FileNotFoundError):
        return "the file does not exist"
    if not is_url(path) and Path(path).is_file() and Path(path).stat().st_size == 0:
        return "the file is empty"
    if isinstance(error, InvalidDataError):
        return "not a video, or cut off or damaged where its index is"
    return _words(error)


def _words(error: Exception) -> str:
    """The message without errno and path."""
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__


def write_trial(path: Path) -> None:
    """Write four small H.264 frames of grey 0, 60, 120 and 180."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for i in range(4):
            grey = np.full((64, 64, 3), 60 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode())
