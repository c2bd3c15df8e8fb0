"""Which frames and which part of them a network sees: the published sampling rules as pure arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from openmvit.errors import UserError

RULES = ("span", "segments")
TARGET_FPS = 30.0


@dataclass(frozen=True)
class ClipSampling:
    """How the frames of a clip are chosen from a video.

    Args:
        num_frames: frames of a clip, T.
        stride: frames of a 30 fps video from one chosen frame to the next; `segments` has no use for it.
        rule: `span` takes T frames of a stretch of `T * stride / 30` seconds (Kinetics); `segments` takes one frame
            of each of T equal parts of the whole video (Something-Something).
    Raises:
        UserError: if a value cannot be used.
    """

    num_frames: int = 16
    stride: int = 4
    rule: str = "span"

    def __post_init__(self) -> None:
        if self.num_frames < 1 or self.stride < 1:
            raise UserError(f"num_frames is {self.num_frames} and stride is {self.stride}", "Both are at least 1")
        if self.rule not in RULES:
            raise UserError(f"sampling rule is {self.rule!r}", f"Accepted: {', '.join(RULES)}")

    def train_indices(self, length: int, fps: float, generator: torch.Generator) -> list[int]:
        """Frame numbers of a random clip, ascending, `[T]`.

        Args:
            length: frames of the video.
            fps: frames per second of the video.
            generator: the only source of randomness; drawn from alike whatever the video's length.
        """
        draws = torch.rand(self.num_frames + 1, dtype=torch.float64, generator=generator).tolist()
        if self.rule == "segments":
            return segment_draws(length, self.num_frames, draws[1:])
        span = clip_span(self.num_frames, self.stride, fps)
        return span_indices(train_start(length, span, draws[0]), span, self.num_frames, length)

    def test_indices(self, length: int, fps: float, clip: int = 0, clips: int = 1) -> list[int]:
        """Frame numbers of clip number `clip` of `clips` spread over the video; segments have one clip only."""
        if self.rule == "segments":
            return segment_centres(length, self.num_frames)
        span = clip_span(self.num_frames, self.stride, fps)
        return span_indices(test_start(length, span, clip, clips), span, self.num_frames, length)


def clip_span(num_frames: int, stride: int, fps: float) -> float:
    """Length of a clip in frames of the video, a real number of at least 1: `T * stride / 30 * fps`."""
    return max(1.0, num_frames * stride * fps / TARGET_FPS)


def train_start(length: int, span: float, draw: float) -> float:
    """Real start of a training clip for a draw in 0..1: uniform over the starts that leave the clip inside."""
    return draw * max(length - span, 0.0)


def test_start(length: int, span: float, clip: int, clips: int) -> int:
    """Start of test clip `clip`: clips at equal whole distances from the first frame on, a single one in the middle.

    Raises:
        UserError: if there is no such clip.
    """
    if not 0 <= clip < clips:
        raise UserError(f"clip {clip} of {clips} does not exist", f"Clips are numbered 0..{clips - 1}")
    room = max(length - span, 0.0)
    return clip * math.floor(room / (clips - 1)) if clips > 1 else math.floor(room / 2)


test_start.__test__ = False  # pyright: ignore[reportFunctionMemberAccess]


def span_indices(start: float, span: float, num_frames: int, length: int) -> list[int]:
    """Frame numbers of a clip: T points from the first to the last frame of the span, rounded down, clamped to both.

    The distance is (span - 1) / (T - 1), not the stride. The frames of a fractional start are those inside the span.
    Source: the decoder of facebookresearch/SlowFast.
    """
    first, last = math.ceil(start), max(math.floor(start + span - 1.0), 0)
    last = min(last, length - 1)
    steps = np.floor(np.linspace(0.0, span - 1.0, num_frames)).astype(int)
    return [min(first + step, last) for step in steps.tolist()]


def segment_bounds(length: int, num_frames: int) -> list[tuple[int, int]]:
    """First and last frame of T equal parts, both inclusive; neighbours share a frame. Rounds half to even."""
    part = (length - 1) / num_frames
    return [(round(part * i), round(part * (i + 1))) for i in range(num_frames)]


def segment_draws(length: int, num_frames: int, draws: Sequence[float]) -> list[int]:
    """A uniform frame of every part, for T draws in 0..1."""
    bounds = segment_bounds(length, num_frames)
    return [low + int(draw * (high - low + 1)) for (low, high), draw in zip(bounds, draws, strict=True)]


def segment_centres(length: int, num_frames: int) -> list[int]:
    """The middle frame of every part, rounded down."""
    return [(low + high) // 2 for low, high in segment_bounds(length, num_frames)]


def split_view(view: int, crops: int) -> tuple[int, int]:
    """Clip number and crop number of a view; crops of the same clip follow each other."""
    return view // crops, view % crops


def crop_corner(height: int, width: int, size: int, position: int) -> tuple[int, int]:
    """Top and left of a square test crop.

    Args:
        height, width: of the resized frame in pixels.
        size: side of the crop.
        position: along the longer side: 0 left or top, 1 centre, 2 right or bottom. The other side is centred.
    """
    top, left = math.ceil((height - size) / 2), math.ceil((width - size) / 2)
    along = {0: 0, 2: max(height, width) - size}
    if position in along:
        return (along[position], left) if height > width else (top, along[position])
    return top, left


def test_short_side(size: int, crops: int, paper: bool = False) -> int:
    """Short side to resize to before cropping squares of `size`.

    `int(size / 0.875)` for one crop (256 for 224); for three crops `size` itself, as the released numbers were
    measured, or with `paper` 256 for 224 there too, as the MViTv2 paper says.
    """
    return int(size / 0.875) if crops == 1 or paper else size


test_short_side.__test__ = False  # pyright: ignore[reportFunctionMemberAccess]


def jitter_side(low: int, high: int, draw: float, inverse: bool) -> int:
    """Random short side for a draw in 0..1: uniform in low..high, or the inverse of a uniform in 1/high..1/low."""
    if inverse:
        return round(1.0 / (1.0 / high + draw * (1.0 / low - 1.0 / high)))
    return round(low + draw * (high - low))


def scaled_size(height: int, width: int, short: int) -> tuple[int, int]:
    """Height and width with the shorter one at `short` and the other in proportion, rounded down."""
    if min(height, width) == short:
        return height, width
    if width < height:
        return math.floor(height / width * short), short
    return short, math.floor(width / height * short)


def window_starts(length: int, span: float, hop: float) -> list[int]:
    """Starts of clips that cover a long video, `hop` frames apart, the last one flush with the end."""
    room = max(length - span, 0.0)
    starts = [math.floor(i * hop) for i in range(math.floor(room / hop) + 1)]
    end = math.floor(room)
    return starts if starts[-1] == end else [*starts, end]
