"""A video with what the model says under it: the label of the moment and a time bar in the labels' colours."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw

from openmvit.data.video_pyav import PyAVReader
from openmvit.data.video_reader import VideoDecodeError, VideoReader
from openmvit.fonts import drawable, font
from openmvit.predict.timeline import Stretch, Window, stretches

_TICKS = 90_000
_QUALITY = {"crf": "20", "preset": "fast"}
_WIDTHS = (320, 1280)
_BAR = 10
_GOLDEN = 0.618034


def draw_video(video: VideoReader, timeline: Sequence[Window], path: Path) -> None:
    """Write an H.264 file that shows the frames of `video` above a strip with label, probability and time bar.

    Frames keep their timestamps; narrow ones are enlarged to 320 pixels, wide ones shrunk to 1280. Sound is left out.
    A file that ends too early or is damaged further on gives the part that can be decoded.

    Args:
        timeline: at least one window.
    """
    parts = stretches(timeline)

    def pictures() -> Iterator[tuple[float, np.ndarray]]:
        panel: Panel | None = None
        for moment, picture in decodable(video):
            panel = panel or Panel(parts, picture.shape[1], picture.shape[0], video.duration)
            yield moment, panel.draw(moment, picture)

    write_video(pictures(), video.fps, path)


def write_video(pictures: Iterable[tuple[float, np.ndarray]], fps: float, path: Path) -> None:
    """Write an H.264 file of pictures with their seconds; without any the file stays empty.

    Args:
        pictures: seconds, and uint8 `[H, W, 3]` of one size with even sides.
    """
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options=dict(_QUALITY))
        stream.codec_context.time_base, stream.pix_fmt = Fraction(1, _TICKS), "yuv420p"
        last = -1
        for moment, picture in pictures:
            if last < 0:
                stream.height, stream.width = picture.shape[:2]
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            last = max(round(moment * _TICKS), last + 1)  # an encoder refuses times that do not ascend
            frame.pts, frame.time_base = last, Fraction(1, _TICKS)
            container.mux(stream.encode(frame))
        if last >= 0:
            container.mux(stream.encode())


def moments(video: VideoReader) -> Iterator[tuple[float, np.ndarray]]:
    """Seconds since the first frame, and the frame, uint8 `[H, W, 3]`.

    Raises:
        VideoDecodeError: where the video cannot be decoded further.
    """
    if isinstance(video, PyAVReader):
        first = None
        for moment, picture in video.stream():
            first = moment if first is None else first
            yield moment - first, picture
    else:
        for number in range(video.num_frames):
            yield number / video.fps, video.frames([number])[0].numpy()


def decodable(video: VideoReader) -> Iterator[tuple[float, np.ndarray]]:
    """`moments` as far as they can be decoded."""
    try:
        yield from moments(video)
    except VideoDecodeError:
        return


class Panel:
    """Puts frames above their strip.

    Args:
        parts: what holds when, in order.
        width, height: of the frames in pixels.
        seconds: length of the time bar.
    """

    def __init__(self, parts: list[Stretch], width: int, height: int, seconds: float) -> None:
        scale = min(max(_WIDTHS[0] / width, 1.0), _WIDTHS[1] / width)
        self.frame = (round(width * scale), round(height * scale))
        self._text = max(16, self.frame[0] // 24)
        self.size = tuple(side + side % 2 for side in (self.frame[0], self.frame[1] + self._text + 10 + _BAR))
        self.parts, self.seconds = parts, max(seconds, parts[-1].end)
        self._strips: dict[int, np.ndarray] = {}
        labels = list(dict.fromkeys(part.label for part in parts))
        self._bar = np.zeros((_BAR, self.frame[0], 3), np.uint8)
        for part in parts:
            hue = labels.index(part.label) * _GOLDEN % 1.0
            left, right = (self._column(second) for second in (part.start, part.end))
            self._bar[:, left : right + 1] = [round(255 * c) for c in colorsys.hsv_to_rgb(hue, 0.65, 0.85)]

    def _column(self, second: float) -> int:
        return min(max(int(second / self.seconds * self.frame[0]), 0), self.frame[0] - 1)

    def draw(self, moment: float, picture: np.ndarray) -> np.ndarray:
        """The frame of a moment with its strip, uint8 `[H, W, 3]`, sides even."""
        number = next((i for i, part in enumerate(self.parts) if moment < part.end), len(self.parts) - 1)
        if number not in self._strips:
            part = self.parts[number]
            strip = text_strip(f"{part.label}  {part.probability:.1%}", self.frame[0], self._text)
            self._strips = {number: np.asarray(strip)}
        if (picture.shape[1], picture.shape[0]) != self.frame:
            picture = np.asarray(Image.fromarray(picture).resize(self.frame, Image.Resampling.BILINEAR))
        bar = self._bar.copy()
        at = self._column(moment)
        bar[:, max(at - 1, 0) : at + 2] = 255
        bar[2:-2, at] = 0
        canvas = np.full((self.size[1], self.size[0], 3), 255, np.uint8)
        rows = 0
        for piece in (picture, bar, self._strips[number]):
            canvas[rows : rows + len(piece), : piece.shape[1]] = piece
            rows += len(piece)
        return canvas


def text_strip(text: str, width: int, size: int) -> Image.Image:
    """A white strip `width` pixels wide and `size + 10` high with black text, which shrinks until it fits."""
    text, height = drawable(text), size + 10
    while size > 8 and font(text, size).getlength(text) > width - 8:
        size -= 1
    strip = Image.new("RGB", (width, height), "white")
    ImageDraw.Draw(strip).text((4, 4), text, fill="black", font=font(text, size))
    return strip
